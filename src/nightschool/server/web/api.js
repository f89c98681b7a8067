// The server's public API. Every failure is an ApiError whose message is one sentence for people.

const KEY = "nightschool.key";
const OURS = "/v1/nightschool";

export class ApiError extends Error {
  constructor(message, status, code = null) {
    super(message);
    this.status = status; // 0: the server was not reached
    this.code = code;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Ask one of our own routes, as in call("GET", "/sources"); `body` is sent as JSON, or as a form. */
export async function call(method, path, body) {
  const response = await request(method, OURS + path, body);
  return response.json();
}

/** The events of a streamed answer, parsed. Stops when `signal` says so (an AbortError), or at [DONE]. */
export async function* stream(path, body, signal) {
  const response = await request("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(lost);
    if (done) throw new ApiError("The answer broke off: the server went away.", 0);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(parsed.error.message, 500, parsed.error.code);
      yield parsed;
    }
  }
}

/** Fetch a file for the browser's downloads: a plain link could neither send the key nor say what failed. */
export async function download(path, name) {
  const response = await request("GET", OURS + path);
  const said = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "");
  const url = URL.createObjectURL(await response.blob().catch(lost));
  const link = Object.assign(document.createElement("a"), { href: url, download: said ? said[1] : name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function request(method, path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
  const sent = body === undefined || isForm ? body : JSON.stringify(body);
  const response = await fetch(path, { method, headers, body: sent, signal, cache: "no-store" }).catch(lost);
  if (response.ok) return response;
  throw await refusal(response);
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new ApiError("The server does not answer: is `nightschool serve` still running?", 0);
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? { message: `The server answered ${response.status}.`, code: null };
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-needed"));
  return new ApiError(error.message, response.status, error.code);
}
