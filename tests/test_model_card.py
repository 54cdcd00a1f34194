"""Model cards: what `prune`, `export` and `load` write is true; `--push` sends all of it."""

import base64
import json
import os
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from bench.cli import main
from bench.core.store import path_of
from bench.export import model_card
from bench.export.card_facts import command_line
from bench.weights import targets
from tests import helpers
from tests.test_prune import make

FOREIGN = b"""---\r
license: other\r
license_name: tiny-licence\r
language: en\r
tags: [small]\r
pipeline_tag: fill-mask\r
model-index: [{name: x, results: []}]\r
---\r
It scores 99 %.\r
"""


def run(capsys, *arguments):
    code = main.main(tuple(map(str, arguments)))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def prune(capsys, folder, out):
    return run(capsys, "prune", folder, "--method", "magnitude", "--pattern", "2:4", "--out", out)


def card(folder):
    """(front matter, text) as the hub reads it; it warns about nothing."""
    found = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    return found.data.to_dict(), found.text


def zero_share(folder):
    """The zeros of a saved GPT-2, counted here."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    weights = [m.weight for b in model.transformer.h for m in b.modules()
               if type(m).__name__ == "Conv1D"]  # fmt: skip
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "model")


def test_a_pruned_folder_tells_what_was_done_and_counted(folder, capsys, tmp_path):
    ids = [[5, 6, 7, 8], [9, 10]]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    command = ["prune", folder, "--method", "wanda", "--sparsity", 0.37, "--out", tmp_path / "o"]
    run(capsys, *command, "--calibration", tmp_path / "ids.json", "--seed", 3)
    data, text = card(tmp_path / "o")
    (step,) = data["sparsebench"]
    assert step["method"] == "wanda"
    assert (step["pattern"], step["sparsity_asked"], step["seed"]) == ("unstructured", 0.37, 3)
    assert (step["calibration"], step["calibration_sequences"]) == ("ids.json", 2)
    assert step["calibration_tokens"] == sum(map(len, ids))
    assert step["sparsity"] == pytest.approx(zero_share(tmp_path / "o"), abs=1e-6)
    assert step["sparsity_before"] == 0
    assert step["bytes"] == (tmp_path / "o" / "model.safetensors").stat().st_size
    assert transformers.__version__ in step["versions"]
    assert torch.__version__ in step["versions"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert {"sparsebench", "wanda", "unstructured"} <= set(data["tags"])
    assert not {"license", "base_model", "model-index"} & set(data)
    assert "names no licence" in text
    assert "Not scored" in text
    assert f"{100 * step['sparsity']:.2f} %" in text
    assert str(tmp_path) not in (tmp_path / "o" / "README.md").read_text()


def test_zeros_before_are_told_apart(folder, capsys, tmp_path):
    run(capsys, "prune", folder, "--method", "magnitude", "--sparsity", 0.2, "--out",
        tmp_path / "a")  # fmt: skip
    run(capsys, "prune", tmp_path / "a", "--method", "magnitude", "--sparsity", 0.5, "--out",
        tmp_path / "b")  # fmt: skip
    first, second = card(tmp_path / "b")[0]["sparsebench"]
    assert second["sparsity_before"] == first["sparsity"] == pytest.approx(0.2, abs=1e-3)
    assert second["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_the_command_repeats_what_was_done(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, *"prune model --method random --pattern 2:4 --seed 7 --out o".split())
    (step,) = card(tmp_path / "o")[0]["sparsebench"]
    first = (tmp_path / "o").rename(tmp_path / "first")
    words = shlex.split(step["command"])
    assert words[0] == "sparsebench"
    run(capsys, *words[1:])
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "o").iterdir())
    for name in names:
        assert (first / name).read_bytes() == (tmp_path / "o" / name).read_bytes()


def test_the_command_names_no_folder_of_this_machine(tmp_path):
    line = command_line("prune", str(tmp_path / "a b"), out="~/x", pattern=None, slice=True,
                        asymmetric=False, set=["a=1", "b=2"],
                        calibration="../up/t.txt")  # fmt: skip
    assert line == "sparsebench prune 'a b' --out x --slice --set a=1 b=2 --calibration t.txt"


def test_a_source_card_is_kept_and_its_licence_holds(folder, capsys, tmp_path):
    (folder / "README.md").write_bytes(FOREIGN)
    prune(capsys, folder, tmp_path / "o")
    data, text = card(tmp_path / "o")
    assert (tmp_path / "o" / "README.source.md").read_bytes() == FOREIGN
    assert (data["license"], data["license_name"], data["language"]) == (
        "other",
        "tiny-licence",
        "en",
    )
    assert data["tags"][0] == "small"
    assert data["pipeline_tag"] == "text-generation"  # of the class, not of the source's card
    assert "model-index" not in data
    assert "tiny-licence" in text
    assert "(README.source.md)" in text
    assert "99 %" not in text


def test_cards_of_several_commands_tell_all_of_them(folder, capsys, tmp_path):
    (folder / "README.md").write_bytes(FOREIGN)
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    prune(capsys, folder, a)
    run(capsys, "export", a, "--format", "nm-packed+int4", "--out", b)
    run(capsys, "load", b, "--out", c)
    for place, commands, library in (
        (a, ["prune"], "transformers"),
        (b, ["prune", "export"], "sparsebench"),
        (c, ["prune", "export", "load"], "transformers"),
    ):
        data, text = card(place)
        steps = data["sparsebench"]
        assert [step["command"].split()[1] for step in steps] == commands
        assert data["library_name"] == library
        assert [p.name for p in place.glob("README.source*")] == ["README.source.md"]
        assert (place / "README.source.md").read_bytes() == FOREIGN
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        assert steps[-1]["bytes"] == size
        assert data["license_name"] == "tiny-licence"
        assert all(step["command"] in text for step in steps)
    assert steps[1]["sparsity"] == pytest.approx(zero_share(a), abs=1e-6)  # before rounding
    assert steps[2]["sparsity"] == pytest.approx(zero_share(c), abs=1e-6)
    assert steps[1]["rounded_to"] == "int4/64"


@pytest.mark.parametrize("text", [
    b"", b"\xff\xfe\x00", b"---\n- [\n---\n", b"---\nsparsebench: 3\n---\n", b"---\n7\n---\nx",
    b"---\nsparsebench:\n- command: [1]\n---\n", b"---\nlicense: [a, b]\nbase_model: '](http://x'\n---\n",
])  # fmt: skip
def test_any_card_of_a_source_is_survived_and_kept(text, folder, capsys, tmp_path):
    (folder / "README.md").write_bytes(text)
    (folder / "README.source.md").write_text("another")
    prune(capsys, folder, tmp_path / "o")
    data, page = card(tmp_path / "o")
    assert len(data["sparsebench"]) == 1
    assert "base_model" not in data
    assert "](http://x" not in page
    assert (tmp_path / "o" / "README.source-2.md").read_bytes() == text
    assert (tmp_path / "o" / "README.source.md").read_text() == "another"


@pytest.mark.parametrize(("name", "base"), [
    ("minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"),
    ("gpt2", "openai-community/gpt2"),
    ("facebook/opt-125m", "facebook/opt-125m"),
    ("tiny-bert", None),
    ("gpt2-mini", None),
    ("smollm2-135m-q4", None),
    ("a/b/c", None),
    ("local/model-12345678", None),
])  # fmt: skip
def test_the_base_model_is_a_name_of_the_hub(name, base):
    assert model_card.base_of(name) == base


@pytest.mark.parametrize(("kind", "tag"), [
    ("GPT2LMHeadModel", "text-generation"),
    ("BertForSequenceClassification", "text-classification"),
    ("BertForMaskedLM", "fill-mask"), ("BertModel", None),
])  # fmt: skip
def test_the_pipeline_follows_the_head(kind, tag):
    assert model_card.pipeline_of(kind) == tag


def test_an_exported_record_brings_its_scores(capsys, tmp_path):
    record = helpers.run_cell(helpers.cell("magnitude", "tiny-gpt2", task="tiny/wikitext"))
    path = tmp_path / path_of(record.cell)
    path.parent.mkdir(parents=True)
    path.write_text(record.to_json())
    run(capsys, "export", path, "--format", "hf", "--out", tmp_path / "o")
    data, text = card(tmp_path / "o")
    (step,) = data["sparsebench"]
    assert step["record"] == record.key
    assert step["sparsity"] == pytest.approx(record.sparsity.overall, abs=1e-6)
    assert (step["method"], step["task"]) == ("magnitude", "tiny/wikitext")
    (index,) = data["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["args"] == {"split": "reported", "items": record.scores.n}
    metrics = {m["type"]: m["value"] for m in result["metrics"]}
    assert metrics == pytest.approx(dict(record.scores.all), rel=1e-5)
    assert next(iter(metrics)) == record.scores.metric
    assert f"{record.scores.value:.6g}" in text
    assert "Not scored" not in text


@pytest.mark.parametrize(
    ("flags", "scored"),
    [
        (("--format", "bitmap"), True),
        (("--format", "bitmap+int4"), False),
        (("--format", "bitmap", "--dtype", "bf16"), False),
    ],
)
def test_scores_of_a_record_are_not_those_of_its_rounded_weights(capsys, tmp_path, flags, scored):
    record = helpers.run_cell(helpers.cell("magnitude", "tiny-gpt2", task="tiny/wikitext"))
    path = tmp_path / path_of(record.cell)
    path.parent.mkdir(parents=True)
    path.write_text(record.to_json())
    run(capsys, "export", path, *flags, "--out", tmp_path / "o")
    data, text = card(tmp_path / "o")
    assert data["sparsebench"][0]["record"] == record.key
    assert ("model-index" in data) == scored
    assert ("Not scored" in text) != scored


class Hub(BaseHTTPRequestHandler):
    """The five addresses of the hub that an upload needs; it remembers what it was sent."""

    def log_message(self, *_):
        pass

    def answer(self, tree, status=200):
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(self.path)
        known = self.headers.get("Authorization") == "Bearer right"
        self.answer({"name": "me", "orgs": []} if known else {"error": "no"}, 200 if known else 401)

    def do_POST(self):
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        at = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.answer({"url": f"{at}/me/pruned", "name": "me/pruned"})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": modes})
        elif "/commit/" in self.path and self.server.accepts:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"commitUrl": f"{at}/me/pruned/commit/abc", "commitOid": "abc",
                         "hookOutput": "", "success": True})  # fmt: skip
        else:
            self.answer({"error": "disk of the hub is full"}, 403)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.cards, server.files, server.accepts = [], [], {}, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def push(hub, *arguments, token="right"):
    """Runs a command with another hub, in its own process: the client reads settings once."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN_PATH": os.devnull,
    }
    env["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def prune_line(folder, out):
    return ["prune", folder, "--method", "magnitude", "--pattern", "2:4", "--out", out]


def test_a_folder_is_pushed_as_it_is(hub, folder, tmp_path):
    done = push(hub, *prune_line(folder, tmp_path / "o"), "--push", "me/pruned")
    assert done.returncode == 0, done.stderr
    written = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    assert hub.files == written
    assert set(hub.cards) == {written["README.md"].decode()}
    assert done.stdout.splitlines()[-1] == f"uploaded: http://127.0.0.1:{hub.server_port}/me/pruned"
    assert hub.asked.index("/api/whoami-v2") < hub.asked.index("/api/repos/create")


def test_a_refused_upload_leaves_the_folder_and_says_how_to_go_on(hub, folder, tmp_path):
    hub.accepts = False
    done = push(hub, *prune_line(folder, tmp_path / "o"), "--push", "me/pruned")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "is written, but not uploaded to me/pruned" in done.stderr
    assert "try `hf upload me/pruned" in done.stderr
    assert (tmp_path / "o" / "model.safetensors").is_file()


def test_without_a_token_nothing_is_asked(hub, tmp_path):
    done = push(hub, *prune_line("nowhere", tmp_path / "o"), "--push", "me/pruned", token="")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "sparsebench: --push me/pruned: no token for the hub; log in with `hf auth login` or set "
        "HF_TOKEN"
    ]
    assert hub.asked == []


def test_a_wrong_token_is_refused_before_any_work(hub, tmp_path):
    done = push(hub, *prune_line("nowhere", tmp_path / "o"), "--push", "me/pruned", token="wrong")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Invalid user token" in done.stderr
    assert "/api/whoami-v2" in hub.asked
    assert "/api/repos/create" not in hub.asked


@pytest.mark.parametrize("command", [
    ["prune", "nowhere", "--method", "magnitude", "--pattern", "2:4"],
    ["export", "nowhere", "--format", "hf"],
])  # fmt: skip
@pytest.mark.parametrize(("repo", "line"), [
    ("me/pruned", "HF_HUB_OFFLINE is set"), ("a/b/c", "write a hub id as OWNER/NAME"),
])  # fmt: skip
def test_offline_and_wrong_names_are_refused_before_any_work(command, repo, line, capsys, tmp_path):
    code = main.main((*command, "--out", str(tmp_path / "o"), "--push", repo))
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert not list(tmp_path.iterdir())


def test_calibration_tokens_do_not_count_padding(folder, capsys, tmp_path):
    np.save(tmp_path / "ids.npy", np.full((3, 8), 5))
    run(capsys, *prune_line(folder, tmp_path / "o"), "--calibration", tmp_path / "ids.npy",
        "--calib", 2)  # fmt: skip
    (step,) = card(tmp_path / "o")[0]["sparsebench"]
    assert (step["calibration_sequences"], step["calibration_tokens"]) == (2, 16)


def test_a_fact_has_the_weights_of_all_matrices_as_its_denominator(folder, capsys, tmp_path):
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    first = targets.prunable(model)[0]
    first.write(torch.zeros_like(first.weight))
    model.save_pretrained(folder)
    run(capsys, "export", folder, "--format", "bitmap", "--out", tmp_path / "o")
    (step,) = card(tmp_path / "o")[0]["sparsebench"]
    whole = sum(t.weight.numel() for t in targets.prunable(model))
    assert step["sparsity"] == pytest.approx(first.weight.numel() / whole, abs=1e-6)
