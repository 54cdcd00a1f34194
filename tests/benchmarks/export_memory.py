"""Peak memory of exporting and loading a model of about 1 GB, each in a process of its own.

    python -m tests.benchmarks.export_memory [FORMAT …]

A script, not a test: it writes a few gigabytes below the temporary folder. It prints the peak of
each step (VmHWM, pages of mapped files included) over the model's bytes, with and without what
Python and its imports take, and fails where the latter is above 1.5.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

STEP = """
import sys, time
from pathlib import Path
from bench import export
def high():
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line[:5] == "VmHWM")) * 1024
start, before = time.perf_counter(), high()
step, form, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if step == "export":
    export.export(str(folder / "model"), form, folder / form)
else:
    export.load_folder(folder / form)
print(high(), before, time.perf_counter() - start)
"""


def make(folder):
    """A random 2:4 Llama of 1.0 GB in float32; its bytes."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.for_model(
        "llama", hidden_size=1536, intermediate_size=4096, num_hidden_layers=8,
        num_attention_heads=16, vocab_size=16_000, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.shape[0] != config.vocab_size:
                parameter.view(-1, 4)[:, :2] = 0.0
    model.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def main(forms):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = make(folder / "model")
        worst = 0.0
        for form in forms:
            for step in ("export", "load"):
                command = [sys.executable, "-c", STEP, step, form, str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                peak, before, seconds = map(float, done.stdout.splitlines()[-1].split())
                worst = max(worst, (peak - before) / size)
                print(
                    f"{step:6} {form:10} model {size / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB: "
                    f"{peak / size:.2f}x, {(peak - before) / size:.2f}x without imports, "
                    f"{seconds:.1f} s"
                )
    return int(worst > 1.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["hf", "bitmap", "csr", "nm-packed", "int4"]))
