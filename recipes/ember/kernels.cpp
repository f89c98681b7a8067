// The blocks of ember (net.py) on a CPU, forward and backward: matrices multiplied as int8, everything else in fp32.
//
// A product of N tokens with a matrix takes both as whole numbers: each token with a scale of its own, each row of the
// matrix with its own. They are four times as fast as fp32 where the CPU has VNNI. The gradient of a matrix sums over
// tokens, so there the scales belong to the channels, and the rounding is random: small gradients are right on average.
// int32 products are not turned into floats before somebody reads them: scales are applied on the way.
//
// Attention is causal inside the documents of a packed stream, for heads of 32 numbers. Document i reaches from
// starts[i] to starts[i + 1]; a place in a document turns the pairs (p, p + 16) of queries and keys by its row of cos
// and sin (rotary embedding) while they are laid out. A thread takes one head of one document; eight queries at a time
// meet 16 keys in registers. The backward computes the scores again from the logarithm of their sums (FlashAttention,
// arXiv:2205.14135).
//
// N tokens, D numbers of a head, W floats of a vector.

#include <torch/extension.h>
#include <omp.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

constexpr int W = 16;         // floats of a vector
constexpr int D = 2 * W;      // floats of a head
constexpr int R = 8;          // queries at a time
constexpr int WIDEST = 4096;  // floats of a row that is normalised or quantised
typedef float vec __attribute__((vector_size(4 * W), aligned(4)));

inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
typedef int ivec __attribute__((vector_size(4 * W), aligned(4)));
inline vec load(const int* p) {
    ivec v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vec);
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

struct Scratch {  // of a thread, kept between calls
    std::vector<float> q, k, v, kt, vt, s, ds, dq, dk, dv, o;
    int pad = 0;
    void fit(int n, bool backward) {
        pad = (n + R + W - 1) / W * W;
        const size_t size = static_cast<size_t>(pad) * D;
        auto grow = [](std::vector<float>& x, size_t m) {
            if (x.size() < m) x.resize(m);
        };
        grow(q, size);
        grow(kt, size);
        grow(v, size);
        grow(s, static_cast<size_t>(R) * pad);
        if (backward) {
            grow(k, size);
            grow(vt, size);
            grow(ds, static_cast<size_t>(R) * pad);
            grow(dq, size);
            grow(dk, size);
            grow(dv, size);
            grow(o, size);
        }
    }
};

// to (D, pad) from rows (n, D)
void transpose(const float* from, float* to, int n, int pad) {
    for (int d = 0; d < D; ++d) {
        float* row = to + static_cast<size_t>(d) * pad;
        for (int i = 0; i < n; ++i) row[i] = from[static_cast<size_t>(i) * D + d];
        for (int i = n; i < pad; ++i) row[i] = 0.f;
    }
}

// rows of one head of one document, turned by their places, times `scale`; zeros behind them. Whole numbers, as
// products of int8 matrices are, are times the scale of their token and of their channel.
template <typename T>
void lay_out(const T* from, size_t stride, const float* token, const float* channel, const float* cos, const float* sin,
             float scale, float* to, int n, int pad) {
    for (int i = 0; i < n; ++i) {
        vec a = load(from + i * stride), b = load(from + i * stride + W);
        if (token) {
            a *= token[i] * load(channel);
            b *= token[i] * load(channel + W);
        }
        if (cos) {
            const vec c = load(cos + i * W), s = load(sin + i * W);
            const vec turned = a * c - b * s;
            b = b * c + a * s;
            a = turned;
        }
        store(to + static_cast<size_t>(i) * D, a * scale);
        store(to + static_cast<size_t>(i) * D + W, b * scale);
    }
    std::memset(to + static_cast<size_t>(n) * D, 0, sizeof(float) * D * (pad - n));
}

void put_back(const float* from, const float* cos, const float* sin, float scale, float* to, size_t stride, int n) {
    for (int i = 0; i < n; ++i) {
        vec a = load(from + static_cast<size_t>(i) * D) * scale,
            b = load(from + static_cast<size_t>(i) * D + W) * scale;
        if (cos) {
            const vec c = load(cos + i * W), s = load(sin + i * W);
            const vec turned = a * c + b * s;
            b = b * c - a * s;
            a = turned;
        }
        store(to + i * stride, a);
        store(to + i * stride + W, b);
    }
}

// s (R, pad) = x (R, D) times y (D, pad), the first `m` columns
inline void times_wide(const float* x, const float* y, float* s, int m, int pad) {
    for (int j = 0; j < m; j += W) {
        vec acc[R] = {};
        for (int d = 0; d < D; ++d) {
            const vec b = load(y + static_cast<size_t>(d) * pad + j);
            for (int r = 0; r < R; ++r) acc[r] += x[r * D + d] * b;
        }
        for (int r = 0; r < R; ++r) store(s + static_cast<size_t>(r) * pad + j, acc[r]);
    }
}

// out (R, D) = p (R, pad) times rows (m, D)
inline void times_tall(const float* p, const float* rows, float* out, int m, int pad) {
    vec a[R] = {}, b[R] = {};
    for (int j = 0; j < m; ++j) {
        const vec u = load(rows + static_cast<size_t>(j) * D), v = load(rows + static_cast<size_t>(j) * D + W);
        for (int r = 0; r < R; ++r) {
            const float w = p[static_cast<size_t>(r) * pad + j];
            a[r] += w * u;
            b[r] += w * v;
        }
    }
    for (int r = 0; r < R; ++r) {
        store(out + r * D, a[r]);
        store(out + r * D + W, b[r]);
    }
}

// rows (m, D) += p (R, pad) transposed times x (R, D)
inline void add_outer(const float* p, const float* x, float* rows, int m, int pad) {
    vec a[R], b[R];
    for (int r = 0; r < R; ++r) {
        a[r] = load(x + r * D);
        b[r] = load(x + r * D + W);
    }
    for (int j = 0; j < m; ++j) {
        float* row = rows + static_cast<size_t>(j) * D;
        vec u = load(row), v = load(row + W);
        for (int r = 0; r < R; ++r) {
            const float w = p[static_cast<size_t>(r) * pad + j];
            u += w * a[r];
            v += w * b[r];
        }
        store(row, u);
        store(row + W, v);
    }
}

void forward_one(Scratch& t, const int* qkv, const float* token, const float* channel, const float* cos,
                 const float* sin, float* out, float* lse, int n, int heads) {
    const size_t stride = static_cast<size_t>(3) * heads * D;
    t.fit(n, false);
    const int pad = t.pad;
    lay_out(qkv, stride, token, channel, cos, sin, 1.f / std::sqrt(static_cast<float>(D)), t.q.data(), n, pad);
    lay_out(qkv + heads * D, stride, token, channel + heads * D, cos, sin, 1.f, t.v.data(), n, pad);
    transpose(t.v.data(), t.kt.data(), n, pad);
    lay_out(qkv + 2 * heads * D, stride, token, channel + 2 * heads * D, nullptr, nullptr, 1.f, t.v.data(), n, pad);
    float mixed[R * D];
    for (int i = 0; i < n; i += R) {
        const int m = std::min(i + R, n), wide = (m + W - 1) / W * W;
        times_wide(t.q.data() + static_cast<size_t>(i) * D, t.kt.data(), t.s.data(), m, pad);
        for (int r = 0; r < R; ++r) {
            float* row = t.s.data() + static_cast<size_t>(r) * pad;
            const int seen = std::min(i + r, n - 1) + 1;
            float top = row[0], sum = 0.f;
            for (int j = 1; j < seen; ++j) top = std::max(top, row[j]);
            for (int j = 0; j < seen; ++j) {
                row[j] = std::exp(row[j] - top);
                sum += row[j];
            }
            const float part = 1.f / sum;
            for (int j = 0; j < seen; ++j) row[j] *= part;
            for (int j = seen; j < wide; ++j) row[j] = 0.f;
            if (i + r < n) lse[i + r] = top + std::log(sum);
        }
        times_tall(t.s.data(), t.v.data(), mixed, m, pad);
        for (int r = 0; r < R && i + r < n; ++r)
            std::memcpy(out + static_cast<size_t>(i + r) * heads * D, mixed + r * D, sizeof(float) * D);
    }
}

void backward_one(Scratch& t, const int* qkv, const float* token, const float* channel, const float* cos,
                  const float* sin, const float* out, const float* lse, const float* dout, float* dqkv, int n,
                  int heads) {
    const size_t stride = static_cast<size_t>(3) * heads * D, narrow = static_cast<size_t>(heads) * D;
    const float scale = 1.f / std::sqrt(static_cast<float>(D));
    t.fit(n, true);
    const int pad = t.pad;
    lay_out(qkv, stride, token, channel, cos, sin, scale, t.q.data(), n, pad);
    lay_out(qkv + heads * D, stride, token, channel + heads * D, cos, sin, 1.f, t.k.data(), n, pad);
    lay_out(qkv + 2 * heads * D, stride, token, channel + 2 * heads * D, nullptr, nullptr, 1.f, t.v.data(), n, pad);
    lay_out(dout, narrow, nullptr, nullptr, nullptr, nullptr, 1.f, t.o.data(), n, pad);
    transpose(t.k.data(), t.kt.data(), n, pad);
    transpose(t.v.data(), t.vt.data(), n, pad);
    std::memset(t.dk.data(), 0, sizeof(float) * static_cast<size_t>(pad) * D);
    std::memset(t.dv.data(), 0, sizeof(float) * static_cast<size_t>(pad) * D);
    for (int i = 0; i < n; i += R) {
        const int m = std::min(i + R, n), wide = (m + W - 1) / W * W;
        const float *q = t.q.data() + static_cast<size_t>(i) * D, *g = t.o.data() + static_cast<size_t>(i) * D;
        times_wide(q, t.kt.data(), t.s.data(), m, pad);
        times_wide(g, t.vt.data(), t.ds.data(), m, pad);
        for (int r = 0; r < R; ++r) {
            float *p = t.s.data() + static_cast<size_t>(r) * pad, *dp = t.ds.data() + static_cast<size_t>(r) * pad;
            const int seen = i + r < n ? i + r + 1 : 0;
            if (seen) {
                float delta = 0.f;
                const float* o = out + (i + r) * narrow;
                for (int d = 0; d < D; ++d) delta += g[r * D + d] * o[d];
                const float l = lse[i + r];
                for (int j = 0; j < seen; ++j) p[j] = std::exp(p[j] - l);
                for (int j = 0; j < seen; ++j) dp[j] = p[j] * (dp[j] - delta);
            }
            for (int j = seen; j < wide; ++j) p[j] = dp[j] = 0.f;
        }
        times_tall(t.ds.data(), t.k.data(), t.dq.data() + static_cast<size_t>(i) * D, m, pad);
        add_outer(t.ds.data(), q, t.dk.data(), m, pad);
        add_outer(t.s.data(), g, t.dv.data(), m, pad);
    }
    put_back(t.dq.data(), cos, sin, scale, dqkv, stride, n);
    put_back(t.dk.data(), cos, sin, 1.f, dqkv + heads * D, stride, n);
    put_back(t.dv.data(), nullptr, nullptr, 1.f, dqkv + 2 * heads * D, stride, n);
}

// (document, head) pairs, the longest first, so that threads end together
std::vector<std::pair<int, int>> pairs_of(const torch::Tensor& starts, int heads) {
    const int64_t* at = starts.data_ptr<int64_t>();
    std::vector<int> order;
    for (int i = 0; i + 1 < starts.numel(); ++i)
        if (at[i + 1] > at[i]) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return at[a + 1] - at[a] > at[b + 1] - at[b]; });
    std::vector<std::pair<int, int>> found;
    for (int i : order)
        for (int h = 0; h < heads; ++h) found.emplace_back(i, h);
    return found;
}

template <typename F>
void for_all(const torch::Tensor& starts, int heads, F&& work) {
    const auto pairs = pairs_of(starts, heads);
    const int64_t* at = starts.data_ptr<int64_t>();
#pragma omp parallel num_threads(at::get_num_threads())
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < pairs.size(); ++i) {
            const int64_t start = at[pairs[i].first];
            work(scratch, start, static_cast<int>(at[pairs[i].first + 1] - start), pairs[i].second);
        }
    }
}

typedef torch::Tensor T;
const float* F(const T& t) { return t.data_ptr<float>(); }
float* M(T& t) { return t.data_ptr<float>(); }

inline float max_of(vec v) {
    float m = v[0];
    for (int i = 1; i < W; ++i) m = std::max(m, v[i]);
    return m;
}
inline float sum_of(vec v) {
    float m = 0;
    for (int i = 0; i < W; ++i) m += v[i];
    return m;
}
inline vec absolute(vec v) { return v < 0.f ? -v : v; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }
typedef int8_t bvec __attribute__((vector_size(W), aligned(1)));
inline void store8(int8_t* p, vec v) {  // v is rounded already
    bvec b = __builtin_convertvector(__builtin_convertvector(v, ivec), bvec);
    std::memcpy(p, &b, sizeof b);
}
inline vec nearest(vec v) {
    const float magic = 12582912.f;
    return (v + magic) - magic;
}

template <typename Fn>
void rows(int64_t n, Fn&& fn) {
#pragma omp parallel for schedule(static) num_threads(at::get_num_threads())
    for (int64_t i = 0; i < n; ++i) fn(i);
}

T int_mm(const T& a, const T& b) { return at::_int_mm(a, b); }

// (int8, scale) of one row of d numbers held in buf
inline float quantise_row(const float* buf, int8_t* to, int64_t d) {
    vec top = {};
    for (int64_t j = 0; j < d; j += W) top = larger(top, absolute(load(buf + j)));
    const float m = std::max(max_of(top), 1e-20f), inv = 127.f / m;
    for (int64_t j = 0; j < d; j += W) store8(to + j, nearest(load(buf + j) * inv));
    return m / 127.f;
}

inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    return x;
}

// x (N, d), possibly plus whole-number products; normalised and quantised
struct Quantised {
    T q, s;
};

Quantised quant(const T& x) {
    const int64_t n = x.size(0), d = x.size(1);
    T q = torch::empty({n, d}, x.options().dtype(torch::kInt8)), s = torch::empty({n}, x.options());
    const float* px = F(x);
    float* ps = M(s);
    int8_t* pq = q.data_ptr<int8_t>();
    rows(n, [&](int64_t i) { ps[i] = quantise_row(px + i * d, pq + i * d, d); });
    return {q, s};
}

// x1 = x + i · token · channel (if given), then its norm with gains g, quantised: {x1, rstd, q, s}
std::vector<T> add_norm_quant(const T& x, const T* product, const T* token, const T* channel, const T& g, double eps) {
    const int64_t n = x.size(0), d = x.size(1);
    T x1 = product ? torch::empty_like(x) : x, rstd = torch::empty({n}, x.options()),
      s = torch::empty({n}, x.options());
    T q = torch::empty({n, d}, x.options().dtype(torch::kInt8));
    const float *px = F(x), *pg = F(g), *pt = token ? F(*token) : nullptr, *pc = channel ? F(*channel) : nullptr;
    const int* pi = product ? product->data_ptr<int>() : nullptr;
    float *p1 = M(x1), *pr = M(rstd), *ps = M(s);
    int8_t* pq = q.data_ptr<int8_t>();
    rows(n, [&](int64_t i) {
        float buf[WIDEST];
        vec sum = {};
        for (int64_t j = 0; j < d; j += W) {
            vec v = load(px + i * d + j);
            if (pi) {
                v += load(pi + i * d + j) * (pt[i] * load(pc + j));
                store(p1 + i * d + j, v);
            }
            sum += v * v;
            store(buf + j, v * load(pg + j));
        }
        const float r = 1.f / std::sqrt(sum_of(sum) / d + static_cast<float>(eps));
        pr[i] = r;
        ps[i] = quantise_row(buf, pq + i * d, d) * r;
    });
    return {x1, rstd, q, s};
}

T add_product(const T& x, const T& product, const T& token, const T& channel) {
    const int64_t n = x.size(0), d = x.size(1);
    T y = torch::empty_like(x);
    const float *px = F(x), *pt = F(token), *pc = F(channel);
    const int* pi = product.data_ptr<int>();
    float* py = M(y);
    rows(n, [&](int64_t i) {
        for (int64_t j = 0; j < d; j += W)
            store(py + i * d + j, load(px + i * d + j) + load(pi + i * d + j) * (pt[i] * load(pc + j)));
    });
    return y;
}

Quantised swiglu_quant(const T& gu, const T& token, const T& channel) {
    const int64_t n = gu.size(0), f = gu.size(1) / 2;
    T q = torch::empty({n, f}, gu.options().dtype(torch::kInt8)), s = torch::empty({n}, token.options());
    const int* pi = gu.data_ptr<int>();
    const float *pt = F(token), *pc = F(channel);
    float* ps = M(s);
    int8_t* pq = q.data_ptr<int8_t>();
    rows(n, [&](int64_t i) {
        float buf[WIDEST];
        const int* row = pi + i * 2 * f;
        for (int64_t j = 0; j < f; ++j) {
            const float a = row[j] * pt[i] * pc[j], b = row[f + j] * pt[i] * pc[f + j];
            buf[j] = a / (1.f + std::exp(-a)) * b;
        }
        ps[i] = quantise_row(buf, pq + i * f, f);
    });
    return {q, s};
}

// What the two products of the backward need of dy (N, d): rows times `channel`, quantised by row, and rows times
// `token`, quantised by channel with random rounding, so that small gradients are not lost but on average right.
struct Both {
    T row, row_s, col, col_s;
};

Both quant_both(const T& dy, const T& channel, const T& token, uint32_t seed) {
    const int64_t n = dy.size(0), d = dy.size(1);
    Both b{torch::empty({n, d}, dy.options().dtype(torch::kInt8)), torch::empty({n}, dy.options()),
           torch::empty({n, d}, dy.options().dtype(torch::kInt8)), torch::empty({d}, dy.options())};
    const float *px = F(dy), *pc = F(channel), *pt = F(token);
    float *rs = M(b.row_s), *cs = M(b.col_s);
    int8_t *rq = b.row.data_ptr<int8_t>(), *cq = b.col.data_ptr<int8_t>();
    const int threads = at::get_num_threads();
    std::vector<float> top(static_cast<size_t>(threads) * d, 0.f), inv(d);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float* mine = top.data() + static_cast<size_t>(me) * d;
        std::vector<float> buf(d);
        const int64_t from = n * me / threads, to = n * (me + 1) / threads;
        for (int64_t i = from; i < to; ++i) {
            const float t = std::fabs(pt[i]);
            for (int64_t j = 0; j < d; j += W) {
                const vec v = load(px + i * d + j);
                store(buf.data() + j, v * load(pc + j));
                store(mine + j, larger(load(mine + j), absolute(v) * t));
            }
            rs[i] = quantise_row(buf.data(), rq + i * d, d);
        }
#pragma omp barrier
#pragma omp single
        for (int64_t j = 0; j < d; ++j) {
            float m = 1e-20f;
            for (int t = 0; t < threads; ++t) m = std::max(m, top[static_cast<size_t>(t) * d + j]);
            cs[j] = m / 126.f;
            inv[j] = 126.f / m;
        }
        typedef uint32_t uvec __attribute__((vector_size(4 * W), aligned(4)));
        for (int64_t i = from; i < to; ++i) {
            uvec state;
            for (int k = 0; k < W; ++k) state[k] = mix(seed * 0x9e3779b9U + static_cast<uint32_t>(i) * W + k) | 1;
            for (int64_t j = 0; j < d; j += W) {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                const vec u = __builtin_convertvector(state >> 8, vec) * (1.f / 16777216.f) - .5f;
                store8(cq + i * d + j, nearest(load(px + i * d + j) * pt[i] * load(inv.data() + j) + u));
            }
        }
    }
    return b;
}

// da, db (N, 2F) from dh = whole-number product · scale, and gate and up
T swiglu_backward(const T& dh, const T& dh_s, const T& gu, const T& token, const T& channel) {
    const int64_t n = gu.size(0), f = gu.size(1) / 2;
    T d = torch::empty({n, 2 * f}, token.options());
    const int *pd = dh.data_ptr<int>(), *pi = gu.data_ptr<int>();
    const float *ds = F(dh_s), *pt = F(token), *pc = F(channel);
    float* po = M(d);
    rows(n, [&](int64_t i) {
        const int *row = pi + i * 2 * f, *g = pd + i * f;
        float* out = po + i * 2 * f;
        for (int64_t j = 0; j < f; ++j) {
            const float a = row[j] * pt[i] * pc[j], b = row[f + j] * pt[i] * pc[f + j], h = g[j] * ds[i];
            const float s = 1.f / (1.f + std::exp(-a));
            out[j] = h * b * s * (1.f + a * (1.f - s));
            out[f + j] = h * a * s;
        }
    });
    return d;
}

// dx = dx_above + the norm's backward of dn = product · scale; dg is added up
T norm_backward(const T& above, const T& product, const T& scale, const T& x, const T& rstd, const T& g, T& dg) {
    const int64_t n = x.size(0), d = x.size(1);
    T dx = torch::empty_like(x);
    const float *pa = F(above), *ps = F(scale), *px = F(x), *pr = F(rstd), *pg = F(g);
    const int* pi = product.data_ptr<int>();
    float* po = M(dx);
    const int threads = at::get_num_threads();
    std::vector<float> part(static_cast<size_t>(threads) * d, 0.f);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float* mine = part.data() + static_cast<size_t>(me) * d;
        for (int64_t i = n * me / threads; i < n * (me + 1) / threads; ++i) {
            const float r = pr[i];
            vec dot = {};
            for (int64_t j = 0; j < d; j += W) {
                const vec dn = load(pi + i * d + j) * ps[i], xr = load(px + i * d + j) * r;
                store(mine + j, load(mine + j) + dn * xr);
                dot += dn * load(pg + j) * xr;
            }
            const float mean = sum_of(dot) / d;
            for (int64_t j = 0; j < d; j += W) {
                const vec dn = load(pi + i * d + j) * ps[i], xr = load(px + i * d + j) * r;
                store(po + i * d + j, load(pa + i * d + j) + r * (dn * load(pg + j) - xr * mean));
            }
        }
    }
    float* pd = M(dg);
    for (int64_t j = 0; j < d; ++j) {
        float s = 0;
        for (int t = 0; t < threads; ++t) s += part[static_cast<size_t>(t) * d + j];
        pd[j] = s;
    }
    return dx;
}

T dequantised(const T& product, const T& scale) {
    const int64_t n = product.size(0), d = product.size(1);
    T y = torch::empty({n, d}, scale.options());
    const int* pi = product.data_ptr<int>();
    const float* ps = F(scale);
    float* py = M(y);
    rows(n, [&](int64_t i) {
        for (int64_t j = 0; j < d; j += W) store(py + i * d + j, load(pi + i * d + j) * ps[i]);
    });
    return y;
}

T weight_gradient(const Both& b, const T& input) { return int_mm(b.col.t(), input).mul(b.col_s.unsqueeze(1)); }

}  // namespace

// One block. w: {qkv, out, gate_up, down} as (int8 (out, in), scale (out,)) pairs; gives {x2, saved…}
std::vector<T> block_forward(T x, T g1, T g2, std::vector<T> w, T starts, T cos, T sin, int64_t heads, double eps) {
    const int64_t N = x.size(0), width = x.size(1);
    for (size_t i = 0; i < w.size(); i += 2)
        TORCH_CHECK(w[i].size(1) % W == 0 && w[i].size(1) <= WIDEST, "sizes must be multiples of 16, at most 4096");
    auto a = add_norm_quant(x, nullptr, nullptr, nullptr, g1, eps);
    T qkv = int_mm(a[2], w[0].t());
    T y = torch::empty_like(x), lse = torch::empty({heads, N}, x.options());
    {
        const int* p = qkv.data_ptr<int>();
        const float *t = F(a[3]), *ch = F(w[1]), *c = F(cos), *s = F(sin);
        float *py = M(y), *pl = M(lse);
        for_all(starts, heads, [&](Scratch& scratch, int64_t start, int n, int h) {
            forward_one(scratch, p + start * 3 * width + h * D, t + start, ch + h * D, c, s, py + start * width + h * D,
                        pl + h * N + start, n, heads);
        });
    }
    auto yq = quant(y);
    T o = int_mm(yq.q, w[2].t());
    auto b = add_norm_quant(x, &o, &yq.s, &w[3], g2, eps);
    T gu = int_mm(b[2], w[4].t());
    auto h = swiglu_quant(gu, b[3], w[5]);
    T d = int_mm(h.q, w[6].t());
    T x2 = add_product(b[0], d, h.s, w[7]);
    return {x2, a[1], a[2], a[3], qkv, y, lse, yq.q, yq.s, b[0], b[1], b[2], b[3], gu, h.q, h.s};
}

// {dx, dg1, dg2, dqkv, dout, dgate_up, ddown}
std::vector<T> block_backward(T dx2, T x, T g1, T g2, std::vector<T> w, std::vector<T> kept, T starts, T cos, T sin,
                              int64_t seed) {
    const T &r1 = kept[0], &n1q = kept[1], &n1s = kept[2], &qkv = kept[3], &y = kept[4], &lse = kept[5], &yq = kept[6],
            &ys = kept[7];
    const T &x1 = kept[8], &r2 = kept[9], &n2q = kept[10], &n2s = kept[11], &gu = kept[12], &hq = kept[13],
            &hs = kept[14];
    const int64_t heads = lse.size(0), N = x.size(0), width = x.size(1);
    T dg1 = torch::empty_like(g1), dg2 = torch::empty_like(g2);
    auto b = quant_both(dx2, w[7], hs, seed);
    T ddown = weight_gradient(b, hq);
    T dgu = swiglu_backward(int_mm(b.row, w[6]), b.row_s, gu, n2s, w[5]);
    b = quant_both(dgu, w[5], n2s, seed + 1);
    T dgate_up = weight_gradient(b, n2q);
    T dx1 = norm_backward(dx2, int_mm(b.row, w[4]), b.row_s, x1, r2, g2, dg2);
    b = quant_both(dx1, w[3], ys, seed + 2);
    T dout = weight_gradient(b, yq);
    T dy = dequantised(int_mm(b.row, w[2]), b.row_s);
    T dqkv = torch::empty({N, 3 * width}, x.options());
    {
        const int* p = qkv.data_ptr<int>();
        const float *t = F(n1s), *ch = F(w[1]), *c = F(cos), *s = F(sin), *py = F(y), *pl = F(lse), *pg = F(dy);
        float* pd = M(dqkv);
        for_all(starts, heads, [&](Scratch& scratch, int64_t start, int n, int h) {
            const int64_t wide = start * 3 * width + h * D, narrow = start * width + h * D;
            backward_one(scratch, p + wide, t + start, ch + h * D, c, s, py + narrow, pl + h * N + start, pg + narrow,
                         pd + wide, n, heads);
        });
    }
    b = quant_both(dqkv, w[1], n1s, seed + 3);
    T dwqkv = weight_gradient(b, n1q);
    T dx = norm_backward(dx1, int_mm(b.row, w[0]), b.row_s, x, r1, g1, dg1);
    return {dx, dg1, dg2, dwqkv, dout, dgate_up, ddown};
}

// Σ weight · −log p(target); logits (N, V) become their gradient
double cross_entropy_(T logits, T targets, T weights) {
    const int64_t n = logits.size(0), v = logits.size(1);
    float* p = M(logits);
    const int64_t* t = targets.data_ptr<int64_t>();
    const float* w = F(weights);
    double total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total) num_threads(at::get_num_threads())
    for (int64_t i = 0; i < n; ++i) {
        float* row = p + i * v;
        float top = row[0], sum = 0;
        for (int64_t j = 1; j < v; ++j) top = std::max(top, row[j]);
        const float wanted = row[t[i]];
        for (int64_t j = 0; j < v; ++j) {
            row[j] = std::exp(row[j] - top);
            sum += row[j];
        }
        const float part = w[i] / sum;
        for (int64_t j = 0; j < v; ++j) row[j] *= part;
        row[t[i]] -= w[i];
        total += w[i] * (std::log(sum) + top - wanted);
    }
    return total;
}

std::vector<T> quantise(T w) {
    auto b = quant(w);
    return {b.q, b.s};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("block_forward", &block_forward);
    m.def("block_backward", &block_backward);
    m.def("cross_entropy_", &cross_entropy_);
    m.def("quantise", &quantise);
}
