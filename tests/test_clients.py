"""Other people's programs against a running server, set up as docs/clients.md says: its pieces are run here.

`make clients` installs them; where one is missing its test is skipped and says so.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import serving

from nightschool.engine import Engine
from nightschool.gguf import open_gguf
from nightschool.hub import find_base
from nightschool.lessons import Lesson, collate
from nightschool.model import Model

DOCS = Path(__file__).parent.parent / "docs" / "clients.md"
CLIENTS = Path(__file__).parent / "clients"
APART = Path(sys.prefix) / "clients"  # packages that stand on other versions than ours
ADDRESS = "http://localhost:7878"
MISSING = "is not installed: `make clients` installs it"
LIMIT_S = 200

PAGE = DOCS.read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def home(module_home):
    """One home for all tests here, and one server: most of these programs only ask."""
    return module_home


@pytest.fixture(scope="module")
def server(home):
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def expected(server):
    """What the plainest client is told: all others must be told the same."""
    with server.openai() as client:
        messages = [{"role": "user", "content": "What is a boat?"}]
        reply = client.chat.completions.create(model="ember", messages=messages, temperature=0)
        return reply.choices[0].message.content


def pieces(title, language):
    """The code of one language under a heading of the page."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, f"no {language} under {title}"
    return found


def needs(package):
    """Skip unless a package is here; it must have the version that the page names."""
    try:
        assert version(package) in PAGE, f"docs/clients.md names another version of {package}"
    except PackageNotFoundError:
        pytest.skip(f"{package} {MISSING}")


def run(arguments, server, **options):
    """A program's output; the page's address is the server's."""
    arguments = [str(argument).replace(ADDRESS, server.url) for argument in arguments]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"} | options.pop("env", {})
    done = subprocess.run(
        arguments,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        stdin=subprocess.DEVNULL,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def shell(line, server, **options):
    """A command line of the page, with the programs that stand beside this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = options.pop("env", {}) | {"PATH": path}
    return run(["sh", "-c", line.strip()], server, env=env, **options)


@pytest.mark.parametrize(
    ("title", "packages"),
    [
        ("OpenAI's Python client", ["openai"]),
        ("LangChain", ["langchain-openai"]),
        ("Ollama's clients", ["ollama"]),
    ],
)
def test_the_pages_python_gets_the_servers_answer(title, packages, server, expected):
    for package in packages:
        needs(package)
    assert run([sys.executable, "-c", pieces(title, "python")[0]], server) == expected


def test_langchain_streams_and_fills_forms(server, expected):
    needs("langchain-openai")
    code = f"""
from typing import Literal
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

class Boat(BaseModel):
    colour: Literal["red", "blue"]
    length: Literal[3, 5]

model = ChatOpenAI(base_url="{ADDRESS}/v1", api_key="none", model="ember", temperature=0)
assert "".join(piece.text for piece in model.stream("What is a boat?")) == {expected!r}
boat = model.with_structured_output(Boat, method="json_schema").invoke("What is a boat?")
print(boat.colour, boat.length)
"""
    colour, length = run([sys.executable, "-c", code], server).split()
    assert colour in ("red", "blue")
    assert length in ("3", "5")


def test_llama_index_chats_though_it_stands_on_an_older_openai(server, expected):
    needs("llama-index-embeddings-openai-like")
    if not (APART / "llama_index" / "llms" / "openai_like").is_dir():
        pytest.skip(f"llama-index-llms-openai-like {MISSING}")
    env = {"PYTHONPATH": str(APART)}
    assert run([sys.executable, "-c", pieces("LlamaIndex", "python")[0]], server, env=env) == expected


@pytest.mark.parametrize(
    ("title", "package"),
    [("LangChain", "langchain-openai"), ("LlamaIndex", "llama-index-embeddings-openai-like")],
)
def test_embeddings_come_through_the_frameworks(title, package, server):
    needs(package)
    assert run([sys.executable, "-c", pieces(title, "python")[1]], server) == "256"


def test_llm_prompts_and_logs(server, expected, tmp_path):
    needs("llm")
    settings = pieces("llm", "yaml")[0].replace(ADDRESS, server.url)
    (tmp_path / "extra-openai-models.yaml").write_text(settings)
    env = {"LLM_USER_PATH": str(tmp_path)}
    assert shell(pieces("llm", "sh")[0], server, env=env) == expected
    (logged,) = json.loads(shell("llm logs --json", server, env=env))
    assert logged["response"].strip() == expected
    assert logged["input_tokens"] > 0


def test_curl_gets_the_same(server, expected):
    if shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")
    said = json.loads(shell(pieces("curl", "sh")[0], server))
    assert said["choices"][0]["message"]["content"] == expected


# OpenAI's npm package -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node():
    """Node with the package that the lock file names."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on this machine")
    wanted = json.loads((CLIENTS / "package.json").read_text())["dependencies"]["openai"]
    assert f"{wanted}, on Node" in PAGE
    manifest = CLIENTS / "node_modules" / "openai" / "package.json"
    if not manifest.is_file() or json.loads(manifest.read_text())["version"] != wanted:
        pytest.skip(f"the npm package openai {wanted} {MISSING}")
    return node


def test_the_pages_javascript_gets_the_servers_answer(node, server, expected):
    code = pieces("OpenAI's JavaScript client", "js")[0].replace(ADDRESS, server.url)
    assert run([node, "--input-type=module", "-e", code], server, cwd=CLIENTS) == expected


def test_the_npm_package_brings_a_job_to_its_end_and_asks_the_tuned_model(node, server):
    found = json.loads(run([node, "chat_and_job.mjs", server.url], server, cwd=CLIENTS))
    assert found["streamed"] == found["chat"]
    job = found["job"]
    assert job["status"] == "succeeded", job["error"]
    assert job["fine_tuned_model"].startswith("ft:ember:local:key:")
    assert any("successfully completed" in message for message in found["events"])
    assert found["results"].startswith("step,train_loss")
    assert "Zaza" in found["tuned"]
    assert found["refused"] == {"status": 400, "name": "BadRequestError", "param": "method.type"}


# lm-evaluation-harness ----------------------------------------------------------------------------

TASK = """
task: boats
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ITEMS = [
    ("Where does a fish live?", ["in the water", "on the roof of the house", "under a red hat"], 0),
    ("What did the girl eat?", ["the moon", "an apple", "a very long and cold stone wall"], 1),
    ("Who keeps the key?", ["a cloud", "the old man"], 1),
    ("What colour is the grass?", ["green", "seven", "Tuesday", "a boat"], 0),
    ("Ünïcode – does “it” read?", ["yes – it does", "nö"], 0),
]


def log_likelihoods(context, choices):
    """(sum of log-probabilities, whether all are the likeliest) by the forward pass that trains."""
    base = find_base("ember")
    model = Model(open_gguf(base.path), "fp32")
    found = []
    with Engine(base.path) as engine:
        start = engine.tokenize(context)
        for choice in choices:
            tokens = engine.tokenize(f"{context} {choice}")
            found.append(one_log_likelihood(model, tokens, len(start)))
    return found


def one_log_likelihood(model, tokens, start):
    ids = np.array(tokens, np.int32)
    batch = collate([Lesson(ids, np.ones(len(ids), bool))], [0])
    with torch.no_grad():
        logits = model.logits(model.read(batch, {}))  # (T, vocabulary)
    logs = torch.log_softmax(logits.double(), -1)
    of = [logs[at - 1, ids[at]].item() for at in range(start, len(ids))]
    greedy = all(logs[at - 1].argmax().item() == ids[at] for at in range(start, len(ids)))
    return sum(of), greedy


def test_lm_eval_scores_a_task_as_the_trainer_does(server, tmp_path):
    needs("lm-eval")
    data, tasks = tmp_path / "boats.jsonl", tmp_path / "tasks"
    tasks.mkdir()
    lines = [
        json.dumps({"question": question, "choices": choices, "answer": answer})
        for question, choices, answer in ITEMS
    ]
    data.write_text("\n".join(lines) + "\n")
    (tasks / "boats.yaml").write_text(TASK.replace("DATA", str(data)))
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = pieces("lm-evaluation-harness", "sh")[0].strip() + " --log_samples --output_path out"
    shell(command, server, cwd=tmp_path, env=offline)
    (file,) = (tmp_path / "out").rglob("samples_boats_*.jsonl")
    samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    right = 0
    for sample, (question, choices, answer) in zip(samples, ITEMS, strict=True):
        ours = log_likelihoods(f"Question: {question}\nAnswer:", choices)
        theirs = [(float(reply[0][0]), reply[0][1] in (True, "True")) for reply in sample["resps"]]
        assert [value for value, _ in theirs] == pytest.approx([value for value, _ in ours], abs=2e-3)
        assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
        best = max(range(len(ours)), key=lambda at: ours[at][0])
        assert sample["acc"] == float(best == answer)
        right += best == answer
    (summary,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(summary.read_text())["results"]["boats"]["acc,none"] == right / len(ITEMS)
