"""Write caches of a teacher's top-k lists, by the layouts that their writers document."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml


@torch.no_grad()
def distributions(model, ids):
    """Log-probabilities (tokens - 1, vocabulary): row i is of token i + 1."""
    return model(torch.tensor([list(ids)])).logits[0, :-1].float().log_softmax(-1)


def lists(model, ids, k):
    """Top-k log-probabilities and ids, (tokens - 1, k) each."""
    logp, token_id = distributions(model, ids).topk(k)
    return logp.numpy(), token_id.numpy()


def packed(values, bits):
    """Bytes of a row of integers: their binary digits one after another."""
    digits = "".join(f"{int(value):0{bits}b}" for value in values)
    digits += "0" * (-len(digits) % 8)
    return [int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)]


def distillkit(folder, model, texts, k, vocabulary, *, cut=False, **more):
    """Lossless lists, in two files; `cut` leaves the last token without the id that it is."""
    folder.mkdir(parents=True)
    settings = {
        "d": vocabulary,
        "k": k,
        "exact_k": k,
        "exact_dtype": "float32",
        "polynomial_terms": None,
        "term_dtype": "float32",
        "residual_bins": [],
        "delta_encoding": False,
        "error_diffusion": False,
        "normalize_t": False,
        **more,
    }
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(settings))
    bits = (vocabulary - 1).bit_length()
    rows = []
    for ids in texts:
        logp, token_id = lists(model, ids, k)
        rows.append(
            {
                "input_ids": list(ids[:-1] if cut else ids),
                "compressed_logprobs": [list(row.astype("<f4").tobytes()) for row in logp],
                "bytepacked_indices": [packed(row, bits) for row in token_id],
            }
        )
    write_rows(folder, rows)
    return rows


def write_rows(folder, rows):
    byte_lists = pa.list_(pa.list_(pa.uint8()))
    schema = pa.schema(
        {
            "input_ids": pa.list_(pa.uint64()),
            "compressed_logprobs": byte_lists,
            "bytepacked_indices": byte_lists,
            **{name: pa.list_(pa.int64()) for name in rows[0] if name in ("labels",)},
            **{name: pa.list_(pa.int64()) for name in rows[0] if name == "attention_mask"},
        }
    )
    half = (len(rows) + 1) // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        if some:
            table = pa.Table.from_pylist(some, schema=schema)
            pq.write_table(table, folder / f"data_{number}.parquet")


def megatron(folder, model, samples, k, *, dtype=torch.float32, change=None):
    """One pair of tars for each half of the samples: (texts, loss masks) of equal length.

    A sample's text has one token more than its inputs: the last label. `change` may alter a pair of
    records before they are packed.
    """
    folder.mkdir(parents=True)
    half = (len(samples) + 1) // 2
    for number, some in enumerate((samples[:half], samples[half:])):
        if not some:
            continue
        start, end = number * half, number * half + len(some)
        inputs, targets = records(model, some, k, f"g:dp0:{start}-{end}", dtype)
        if change is not None:
            change(inputs, targets)
        for kind, record in (("inputs", inputs), ("targets", targets)):
            write_tar(
                folder / f"dp0__{start}-{end}.{kind}.tar",
                {
                    "_meta.json": json.dumps({"format_version": 3, "kind": kind}).encode(),
                    f"{start}-{end}.{kind}.pt.zst": zst(record),
                },
            )


def records(model, samples, k, record_id, dtype):
    both = [lists(model, ids, k) for ids, _ in samples]
    ids = np.concatenate([token_id for _, token_id in both]).astype(np.int64)
    lengths = [len(ids) - 1 for ids, _ in samples]
    shared = {"format_version": 3, "record_id": record_id}
    inputs = {
        **shared,
        "tokens": torch.tensor([t for ids, _ in samples for t in ids[:-1]], dtype=torch.int32),
        "labels": torch.tensor([t for ids, _ in samples for t in ids[1:]], dtype=torch.int32),
        "position_ids": torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths]),
        "loss_mask": torch.tensor([one for _, mask in samples for one in mask], dtype=torch.bool),
        "loss_mask_encoding": "bool",
        "sample_offsets": torch.tensor(np.cumsum([0, *lengths])),
        "cu_seqlens": None,
        "cu_seqlens_padded": None,
    }
    targets = {
        **shared,
        "values": torch.tensor(np.concatenate([logp for logp, _ in both])).to(dtype),
        "indices_low": torch.tensor(ids & 0xFFFF).to(torch.uint16),
        "bit_17": torch.tensor(packed((ids >> 16).reshape(-1), 1), dtype=torch.uint8),
    }
    return inputs, targets


def zst(record):
    stream = io.BytesIO()
    torch.save(record, stream)
    return pa.compress(stream.getvalue(), codec="zstd", asbytes=True)


def write_tar(path: Path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def axolotl(path, model, tokenizer, conversations, k, *, newer=False):
    """Rows of JSON: a question, an answer, and vLLM's lists for the tokens of the answer.

    An answer is its token ids, the end token included. vLLM lists the token that was drawn, too,
    after its top-k.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for question, answer in conversations:
            asked = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
            every = distributions(model, [*prompt, *answer])[len(prompt) - 1 :]
            found = []
            for row, drawn in zip(every, answer, strict=True):
                ids = row.topk(k).indices.tolist()
                found.append([(i, float(row[i])) for i in [*ids, *{drawn} - set(ids)]])
            said = {"role": "assistant", "content": tokenizer.decode(answer[:-1])}
            data = {"messages_combined": [*asked, said]}
            name = "llm_text_generation_vllm_logprobs"
            if newer:
                data[name] = [[logp for _, logp in pairs] for pairs in found]
                data["target_token_ids"] = [[token for token, _ in pairs] for pairs in found]
            else:
                data[name] = [
                    [{"token": f"token_id:{token}", "logprob": logp} for token, logp in pairs]
                    for pairs in found
                ]
            file.write(json.dumps(data) + "\n")
