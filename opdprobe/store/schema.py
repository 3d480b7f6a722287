"""The store's schema: dimensions, variables, dtypes and units of one recorded step.

A step is one `xarray.Dataset`. Its main dimension `state` is flat: one row for every recorded
response position of every recorded rollout. `VARIABLES` is the only place that defines a name, a
dtype, a unit or a long name; `step_dataset` builds a step, `validate` checks one. Inside opdprobe a
step is a `Step`.

A model behind a server, in a cache or in another trainer's dump, reports only some of its numbers.
A step lists such models in its attribute ``missing``; NaN then stands for what was not reported:
that model's entropy, its log-probabilities of tokens that only the other model lists, of drawn
tokens and of stopping, with which tokens it stops, and the divergence. A step may also hold no
top-k lists (none of `TOP_K`), but log-probabilities of the drawn tokens only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import StoreError

SCHEMA_VERSION = 2
MODELS = ("student", "teacher")

# Slack, in nats and in probability, for two float32 kernels that compute the same log-prob.
_TOLERANCE = 1e-3
# Rows per block in match_tokens: its temporaries stay in the second-level cache.
_BLOCK = 8192


class Variable(NamedTuple):
    """One row of the schema: a variable's dimensions, dtype, unit and long name."""

    dims: tuple[str, ...]
    dtype: str  # "str", or a numpy dtype name
    units: str  # "nats", or "1" for everything without a unit
    long_name: str
    required: bool = False


VARIABLES: dict[str, Variable] = {
    # coordinates
    "model": Variable(("model",), "str", "1", "whose probability", True),
    "support": Variable(("support",), "str", "1", "whose top-k tokens", True),
    "rollout": Variable(("state",), "int32", "1", "row of the rollout tables", True),
    "position": Variable(("state",), "int32", "1", "position in the response, from 0", True),
    "step": Variable(("state",), "int32", "1", "training step", True),
    # one row per state
    "token_id": Variable(("state", "support", "rank"), "int32", "1", "top-k token ids", True),
    "logp": Variable(
        ("state", "model", "support", "rank"), "float32", "nats", "log-probability", True
    ),
    "entropy": Variable(("state", "model"), "float32", "nats", "entropy", True),
    "reverse_kl": Variable(
        ("state",), "float32", "nats", "KL divergence of student from teacher, KL(p‖q)", True
    ),
    "match": Variable(
        ("state", "rank"), "int8", "1", "rank of the student's token in the teacher's top-k", True
    ),
    "sampled_id": Variable(("state",), "int32", "1", "token the student drew"),
    "sampled_logp": Variable(
        ("state", "model"), "float32", "nats", "log-probability of the sampled token"
    ),
    "sampler_logp": Variable(
        ("state",), "float32", "nats", "log-probability of the sampled token, as its sampler has it"
    ),
    "reported_logp": Variable(
        ("state", "model"),
        "float32",
        "nats",
        "log-probability of the sampled token, as the trainer reported it",
    ),
    "stop_logp": Variable(
        ("state", "model", "support"), "float32", "nats", "log-probability of stopping"
    ),
    # one row per rollout
    "prompt_id": Variable(("rollout",), "str", "1", "prompt"),
    "prompt_length": Variable(("rollout",), "int32", "1", "prompt length in tokens"),
    "teacher_prompt_length": Variable(
        ("rollout",), "int32", "1", "length of the teacher's prompt in tokens"
    ),
    "length": Variable(("rollout",), "int32", "1", "response length in tokens"),
    # float32 instead where it is not known of some rollout, which then has NaN
    "finished": Variable(("rollout",), "bool", "1", "response ended by itself"),
    "correct": Variable(("rollout",), "float32", "1", "correctness (NaN: not graded)"),
    "label": Variable(("rollout", "label_name"), "str", "1", "label of the rollout"),
    "label_name": Variable(("label_name",), "str", "1", "name of the label"),
    # contiguous ragged text: row i starts at the sum of the lengths before it
    "prompt_ids": Variable(("prompt_token",), "int32", "1", "prompt token ids"),
    "teacher_prompt_ids": Variable(
        ("teacher_prompt_token",), "int32", "1", "token ids of the teacher's prompt"
    ),
    "response_ids": Variable(("response_token",), "int32", "1", "response token ids"),
}
COORDS = ("model", "support", "rollout", "position", "step", "label_name")
REQUIRED = tuple(name for name, variable in VARIABLES.items() if variable.required)
TOP_K = ("token_id", "logp", "entropy", "reverse_kl", "match")
"""What a step has if it holds top-k lists; one without them has none of these."""
# Recorded since schema 2: a run that was begun before goes on without.
ADDED = ("stop_logp",)
# Log-probabilities of which some rollouts or tokens may have none.
_MAY_BE_NAN = ("sampler_logp", "reported_logp")
RAGGED = {
    "prompt_ids": "prompt_length",
    "teacher_prompt_ids": "teacher_prompt_length",
    "response_ids": "length",
}
"""Texts of all rollouts in one row, and where the length of each is."""


@dataclass(frozen=True)
class Step:
    """A valid step in the form that opdprobe uses internally; made by `build_step` or `to_step`.

    Its variables are not in a Dataset, which would take longer to make than to write.

    Attributes
    ----------
    variables
        Variables by name, in memory.
    attrs
        Attributes of the step.
    """

    variables: Mapping[Any, xr.Variable]
    attrs: Mapping[Any, Any]

    def __getitem__(self, name: str) -> xr.Variable:
        """Return a variable or a coordinate by its name."""
        return self.variables[name]

    @property
    def sizes(self) -> dict[Any, int]:
        """Length of each dimension."""
        return {dim: n for v in self.variables.values() for dim, n in v.sizes.items()}

    def to_dataset(self) -> xr.Dataset:
        """Make a Dataset of the variables."""
        coords = {name: self.variables[name] for name in COORDS if name in self.variables}
        data = {name: v for name, v in self.variables.items() if name not in coords}
        return xr.Dataset(data, coords, self.attrs)


def required(names: Iterable[Any]) -> tuple[str, ...]:
    """Name the variables that a step with these variables must have."""
    if not set(TOP_K).isdisjoint(names):
        return REQUIRED
    bare = (name for name in REQUIRED if name not in TOP_K and name != "support")
    return (*bare, "sampled_id", "sampled_logp")


def match_tokens(student_ids: ArrayLike, teacher_ids: ArrayLike) -> NDArray[np.signedinteger]:
    """Find the place of each of the student's tokens in the teacher's list.

    Parameters
    ----------
    student_ids : array_like of int, shape (..., k)
        Token ids.
    teacher_ids : array_like of int, shape (..., m)
        Token ids; the leading axes equal those of `student_ids`. m may differ from k.

    Returns
    -------
    ndarray of int8 (int16 where m > 127), shape (..., k)
        The first index into the last axis of `teacher_ids` that holds the same id, or -1.

    Raises
    ------
    ValueError
        The leading axes differ, or m is above 32,767.

    Examples
    --------
    >>> match_tokens([[7, 5, 9]], [[5, 8, 7]])
    array([[ 2,  0, -1]], dtype=int8)
    >>> match_tokens([1, 2], []), match_tokens([], [1, 2])
    (array([-1, -1], dtype=int8), array([], dtype=int8))
    """
    student, teacher = np.asarray(student_ids), np.asarray(teacher_ids)
    if student.shape[:-1] != teacher.shape[:-1] or student.ndim == 0:
        raise ValueError(
            f"student_ids has shape {student.shape} and teacher_ids {teacher.shape}; "
            "expected (..., k) and (..., m) with equal leading axes."
        )
    k, m = student.shape[-1], teacher.shape[-1]
    if m > np.iinfo(np.int16).max:
        raise ValueError(
            f"the lists have {m} tokens; expected at most {np.iinfo(np.int16).max}: choose a "
            "smaller k."
        )
    n = int(np.prod(student.shape[:-1]))
    dtype = np.dtype(np.int8 if m <= 127 else np.int16)
    student, teacher = student.reshape(n, k), teacher.reshape(n, m)
    match = np.empty((n, k), dtype)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        # Rank first: each comparison then runs along a long contiguous axis. One pass per
        # teacher token avoids an (n, k, m) tensor.
        student_kn = np.ascontiguousarray(student[rows].T)
        teacher_mn = np.ascontiguousarray(teacher[rows].T)
        best = np.zeros(student_kn.shape, dtype)  # m - index, so that the first hit is the maximum
        hit, score = np.empty(best.shape, bool), np.empty(best.shape, dtype)
        for j in range(m):
            np.equal(student_kn, teacher_mn[j], out=hit)
            np.multiply(hit, dtype.type(m - j), out=score)
            np.maximum(best, score, out=best)
        match[rows] = np.where(best > 0, m - best, -1).T
    return match.reshape(*np.shape(student_ids)[:-1], k)


def step_dataset(
    *,
    rollout: ArrayLike,
    position: ArrayLike,
    token_id: ArrayLike | None = None,
    logp: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    reverse_kl: ArrayLike | None = None,
    step: ArrayLike = 0,
    sampled_id: ArrayLike | None = None,
    sampled_logp: ArrayLike | None = None,
    sampler_logp: ArrayLike | None = None,
    reported_logp: ArrayLike | None = None,
    stop_logp: ArrayLike | None = None,
    prompt_id: ArrayLike | None = None,
    prompt_length: ArrayLike | None = None,
    teacher_prompt_length: ArrayLike | None = None,
    length: ArrayLike | None = None,
    finished: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    label: ArrayLike | None = None,
    label_name: ArrayLike | None = None,
    prompt_ids: ArrayLike | None = None,
    teacher_prompt_ids: ArrayLike | None = None,
    response_ids: ArrayLike | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Build one valid step from plain arrays.

    Computes `match`, casts to the schema's dtypes and attaches units and long names. N is the
    number of states, R the number of rollouts; the axes `model` and `support` are
    (student, teacher).

    Parameters
    ----------
    rollout, position : int, shape (N,)
        Which rollout a state belongs to, and where in its response, counted from 0.
    token_id : int, shape (N, 2, k), optional
        Each model's top-k token ids, most probable first. A step without lists has neither these
        nor `logp`, `entropy` and `reverse_kl`, but the sampled tokens and their log-probabilities.
    logp : float, shape (N, 2, 2, k), optional
        ``logp[:, m, s]`` is the full-vocabulary log-probability, in nats, that model m gives to
        the tokens ``token_id[:, s]``. ``-inf`` is probability 0; NaN is allowed for ``missing``
        models (see the module).
    entropy : float, shape (N, 2), optional
        Full-vocabulary entropy of both models, in nats.
    reverse_kl : float, shape (N,), optional
        KL(p‖q) of student from teacher over the full vocabulary, in nats; ``inf`` where the
        teacher rules out a token that the student does not.
    step : int or shape (N,)
        Training step.
    sampled_id : int, shape (N,), optional
        The token that the student drew at the state.
    sampled_logp : float, shape (N, 2), optional
        Both models' log-probability of it, in nats.
    sampler_logp : float, shape (N,), optional
        Its log-probability as the engine that drew it reported it, in nats; NaN where unknown.
    reported_logp : float, shape (N, 2), optional
        Both models' log-probability of it as another trainer reported it, in nats; NaN where
        unknown.
    stop_logp : float, shape (N, 2, 2), optional
        ``stop_logp[:, m, s]`` is the log of the probability, in nats, that model m gives to all
        tokens together with which model s ends a response.
    prompt_id : str, shape (R,), optional
        Prompt names.
    prompt_length, teacher_prompt_length, length : int, shape (R,), optional
        Number of tokens in the prompt, in what the teacher reads in its place (if that is another
        text), and in the response; not every response token need be recorded as a state.
    finished : bool, shape (R,), optional
        Whether the response ended by itself rather than at the length limit; float, with NaN,
        where some rollouts do not tell.
    correct : float, shape (R,), optional
        Correctness in [0, 1]; NaN where the response was not graded.
    label : str, shape (R, L), optional
        L labels of each rollout; "" where it has none of that name.
    label_name : str, shape (L,), optional
        Names of the labels.
    prompt_ids, teacher_prompt_ids, response_ids : int, shape (sum of lengths,), optional
        Token ids of all rows, concatenated.
    attrs : mapping, optional
        More attributes of the step; ``missing`` lists the models that are only partly known.

    Returns
    -------
    xarray.Dataset
        A step that passes `validate`.

    Raises
    ------
    StoreError
        The arrays do not make a valid step; the message names the variable.

    Examples
    --------
    >>> ds = step_dataset(token_id=[[[3, 1], [1, 0]]], logp=np.full((1, 2, 2, 2), -1.0),
    ...                   entropy=[[1.2, 1.1]], reverse_kl=[0.3], rollout=[0], position=[0])
    >>> ds.match.values, ds.logp.attrs["units"]
    (array([[-1,  0]], dtype=int8), 'nats')
    """
    given = {name: value for name, value in locals().items() if name in VARIABLES}
    return build_step(given, attrs).to_dataset()


def build_step(arrays: Mapping[str, ArrayLike | None], attrs: Mapping[str, Any] | None) -> Step:
    """Build a step like `step_dataset`, but not as a Dataset.

    Parameters
    ----------
    arrays : mapping of str to array_like
        The arrays that `step_dataset` takes, by name; None for one that is not known.
    attrs : mapping, optional
        More attributes of the step.
    """
    given = {**arrays, "model": list(MODELS)}
    if any(arrays.get(name) is not None for name in (*TOP_K, "stop_logp")):
        given["support"] = list(MODELS)
    n_states = len(np.asarray(arrays["rollout"]))
    if arrays.get("token_id") is not None:
        ids = np.asarray(arrays["token_id"])
        if ids.ndim != 3 or ids.shape[1] != len(MODELS):
            raise StoreError(f"token_id has shape {ids.shape}; expected (states, 2, k).")
        n_states = len(ids)
        ids = _cast("token_id", ids)
        given |= {"token_id": ids, "match": match_tokens(ids[:, 0], ids[:, 1])}
    given["step"] = np.broadcast_to(np.asarray(arrays.get("step", 0)), n_states)
    variables: dict[str, xr.Variable] = {}
    sizes: dict[str, int] = {}
    for name, variable in VARIABLES.items():
        if (array := given.get(name)) is None:
            continue
        values = _cast(name, array)
        if values.ndim != len(variable.dims):
            raise StoreError(
                f"{name} has shape {values.shape}; expected one axis for each of {variable.dims}."
            )
        for dim, n in zip(variable.dims, values.shape, strict=True):
            if sizes.setdefault(dim, n) != n:
                shapes = {key: np.shape(a) for key, a in given.items() if a is not None}
                raise StoreError(
                    f"the arrays of a step disagree: {name} has {n} along {dim}, another variable "
                    f"{sizes[dim]}; shapes: {shapes}."
                )
        variables[name] = xr.Variable(variable.dims, values, variable_attrs(name))
    step = Step(variables, {"schema_version": SCHEMA_VERSION, **(attrs or {})})
    _check_given(step)
    return step


def variable_attrs(name: str) -> dict[str, str]:
    """Return the units and the long name of a variable, as attributes."""
    return {"units": VARIABLES[name].units, "long_name": VARIABLES[name].long_name}


# (kind wanted, kind given): casts that lose nothing that the schema's dtype could keep.
_SAFE_CASTS = {("i", "u"), ("f", "i"), ("f", "u"), ("f", "b")}


def _cast(name: str, values: ArrayLike) -> np.ndarray:
    dtype = VARIABLES[name].dtype
    array = np.asarray(values)
    if dtype == "str":
        return array.astype(str)
    if name == "match":  # int8, or int16 for more than 127 ranks
        return array
    wanted, came = np.dtype(dtype), array.dtype
    if array.size == 0:
        return array.astype(wanted)  # an empty list arrives as float64
    if name == "finished" and came.kind == "f" and np.isnan(array).any():
        return array.astype(np.float32)
    if wanted.kind != came.kind and (wanted.kind, came.kind) not in _SAFE_CASTS:
        raise StoreError(f"{name} has dtype {came}; expected {dtype}.")
    cast = array.astype(wanted)
    if wanted.kind == "i" and (lost := array[cast != array]).size:
        raise StoreError(f"{name} holds {lost[0]}, which does not fit {dtype}.")
    return cast


def check_version(version: Any, where: str) -> None:
    """Refuse a store that this opdprobe cannot read.

    Parameters
    ----------
    version : object
        The `schema_version` attribute, None if it is absent.
    where : str
        What carries it; the message begins with this.

    Raises
    ------
    StoreError
        The version is absent, or newer.

    Examples
    --------
    >>> check_version(2, "run")
    >>> check_version(3, "run")
    Traceback (most recent call last):
    ...
    opdprobe.errors.StoreError: run: schema_version = 3; expected at most 2: upgrade opdprobe.
    """
    if not isinstance(version, int | np.integer):
        raise StoreError(
            f"{where}: schema_version = {version!r}; expected an integer: "
            "opdprobe did not write this, or its attributes were dropped."
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{where}: schema_version = {version}; expected at most {SCHEMA_VERSION}: "
            "upgrade opdprobe."
        )


def validate(ds: xr.Dataset) -> None:
    """Check that a dataset is a step in this schema; loads lazy variables to do so.

    Optional variables (`VARIABLES`, `required=False`) are checked if present; variables that
    the schema does not know are ignored.

    Parameters
    ----------
    ds : xarray.Dataset
        One step.

    Raises
    ------
    StoreError
        At the first violation; the message names the variable, what it is and what was expected.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> ds = synthetic_step(k=4)
    >>> validate(ds)
    >>> validate(ds.drop_vars("entropy"))
    Traceback (most recent call last):
    ...
    opdprobe.errors.StoreError: entropy is missing; expected dims ('state', 'model').
    """
    to_step(ds)


def to_step(ds: xr.Dataset) -> Step:
    """Check and load a Dataset as `validate` does, and return it as a `Step` of the store's types.

    Numbers of other widths, such as NumPy's int64 and float64, become the store's.
    """
    check_version(ds.attrs.get("schema_version"), "step")
    for name in COORDS:
        if name in ds.variables and name not in ds.coords:
            raise StoreError(f"{name} is a data variable; expected a coordinate: ds.set_coords.")
    loaded = ds.compute().variables
    step = Step({name: _narrow(str(name), v) for name, v in loaded.items()}, ds.attrs)
    values = _check_given(step)
    if "match" in values:
        ids, match = values["token_id"], values["match"]
        expected = match_tokens(ids[:, 0], ids[:, 1])
        _check("match", match, match != expected, "match_tokens(student ids, teacher ids)")
    return step


def _narrow(name: str, variable: xr.Variable) -> xr.Variable:
    """Give numbers of the right kind the store's width; refuse integers that do not fit."""
    if name not in VARIABLES or variable.dtype.kind not in "if":
        return variable
    wanted = np.dtype("float32" if variable.dtype.kind == "f" else "int32")
    if VARIABLES[name].dtype not in (wanted.name, "bool") or variable.dtype == wanted:
        return variable  # match has a type of its own; a wrong kind is refused later
    values = variable.values
    if wanted.kind == "i":
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        _check(name, values, (values < low) | (values > high), f"{low} to {high}")
    with np.errstate(over="ignore"):  # a float beyond float32 is infinite there
        return variable.copy(data=values.astype(wanted))


def _check_given(step: Step) -> dict[str, NDArray[Any]]:
    """Check all but `match`, which `build_step` computes itself; return the variables' arrays."""
    needed = required(step.variables)
    for name, variable in VARIABLES.items():
        _check_form(step, name, variable, name in needed)
    values = {name: step[name].values for name in VARIABLES if name in step.variables}
    for name in ("model", "support"):
        if name in values and (labels := tuple(values[name].tolist())) != MODELS:
            raise StoreError(f"{name} = {labels}; expected {MODELS}.")
    _check_numbers(values, step.attrs.get("missing", []))
    if "token_id" in values:
        _check_top_k(values["token_id"], values["logp"])
    _check_rollouts(values, step.sizes.get("rollout"))
    return values


def _check_form(step: Step, name: str, variable: Variable, needed: bool) -> None:
    if name not in step.variables:
        if needed:
            raise StoreError(f"{name} is missing; expected dims {variable.dims}.")
        return
    if step[name].dims != variable.dims:
        raise StoreError(f"{name} has dims {step[name].dims}; expected {variable.dims}.")
    kinds = "UOT" if variable.dtype == "str" else np.dtype(variable.dtype).kind
    if name == "finished":
        kinds += "f"
    if step[name].dtype.kind not in kinds:
        raise StoreError(f"{name} has dtype {step[name].dtype}; expected {variable.dtype}.")


def _check_numbers(arrays: Mapping[str, NDArray[Any]], missing: Any) -> None:
    """Check signs and ranges, one rule per unit or kind."""
    may_be_missing = _may_be_missing(arrays, missing)
    for name, values in arrays.items():
        dtype = VARIABLES[name].dtype
        if dtype not in ("int32", "float32") and values.dtype.kind != "f":
            continue
        # Written as ~(good) where NaN must count as bad.
        if dtype == "int32":
            bad, expected = values < 0, ">= 0"
        elif name == "correct":
            bad, expected = (values < 0) | (values > 1), "0 to 1, or NaN where not graded"
        elif name == "finished":
            bad, expected = ~((values == 0) | (values == 1) | np.isnan(values)), "0, 1 or NaN"
        elif name in _MAY_BE_NAN:
            bad, expected = values > _TOLERANCE, "a log-probability, <= 0, or NaN where unknown"
        elif name.endswith("logp"):
            bad, expected = ~(values <= _TOLERANCE), "a log-probability, <= 0"
        elif name == "entropy":
            bad, expected = ~(values >= -_TOLERANCE) | np.isinf(values), "finite and >= 0"
        else:  # reverse_kl
            bad, expected = ~(values >= -_TOLERANCE), ">= 0, or inf"
        if name in may_be_missing:
            bad &= ~(may_be_missing[name] & np.isnan(values))
        _check(name, values, bad, expected)


def _may_be_missing(
    arrays: Mapping[str, NDArray[Any]], missing: Any
) -> dict[str, NDArray[np.bool_]]:
    """Mark where NaN is allowed: the values that the models in `missing` do not report."""
    if not isinstance(missing, list) or not all(model in MODELS for model in missing):
        raise StoreError(f"missing = {missing!r}; expected a list of models out of {MODELS}.")
    if not missing:
        return {}
    of_model = np.array([[model in missing for model in MODELS]])
    if "token_id" not in arrays:
        return {"sampled_logp": of_model}
    ids = arrays["token_id"]
    logp = np.zeros(arrays["logp"].shape, bool)
    for m, model in enumerate(MODELS):
        if model in missing:
            other = 1 - m
            # A token in both lists is in the model's own, so its probability is known.
            logp[:, m, other] = match_tokens(ids[:, other], ids[:, m]) < 0
    unknown = {"logp": logp, "entropy": of_model, "reverse_kl": np.ones(len(ids), bool)}
    # Neither what such a model gives to stop tokens is known, nor with which tokens it stops.
    unknown["stop_logp"] = of_model[:, :, None] | of_model[:, None, :]
    if "sampled_id" in arrays:
        # All that is known of a drawn token may be the model's own list.
        unlisted = (ids != arrays["sampled_id"][:, None, None]).all(-1)
        unknown["sampled_logp"] = unlisted & of_model
    return unknown


def _check(name: str, values: np.ndarray, bad: np.ndarray, expected: str) -> None:
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise StoreError(
            f"{name} = {values[where]} at index {where} "
            f"({int(bad.sum())} of {bad.size} values); expected {expected}."
        )


def _check_top_k(ids: NDArray[np.integer], logp: NDArray[np.floating]) -> None:
    ordered = np.sort(ids, axis=-1)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        # A list matched with itself gives 0, 1, 2, … exactly if no id occurs twice.
        twice = match_tokens(ids, ids) != np.arange(ids.shape[2])
        for s, support in enumerate(MODELS):
            _check(f"token_id of support {support}", ids[:, s], twice[:, s], "ids without repeats")
    for s, support in enumerate(MODELS):
        own = logp[:, s, s]
        rising = np.zeros(own.shape, bool)
        rising[:, 1:] = own[:, 1:] > own[:, :-1] + _TOLERANCE
        _check(f"logp of support {support}", own, rising, "most probable first")
    mass = np.einsum("...k->...", np.exp(logp))  # for a short axis, faster than `sum`
    _check("probability mass of logp", mass, mass > 1 + _TOLERANCE, "<= 1: normalise over all ids")


def _check_rollouts(arrays: Mapping[str, NDArray[Any]], n_rollout: int | None) -> None:
    if ("sampled_id" in arrays) != ("sampled_logp" in arrays):
        raise StoreError("only one of sampled_id, sampled_logp is present; expected both or none.")
    if ("label" in arrays) != ("label_name" in arrays):
        raise StoreError("only one of label, label_name is present; expected both or none.")
    if "label_name" in arrays and len(set(names := arrays["label_name"].tolist())) < len(names):
        raise StoreError(f"label_name = {names}; expected names without repeats.")
    rollout, position = arrays["rollout"], arrays["position"]
    if n_rollout is not None:
        _check("rollout", rollout, rollout >= n_rollout, f"< {n_rollout}, the number of rollouts")
    if "length" in arrays:
        length = arrays["length"][rollout]
        _check("position", position, position >= length, "less than the response's length")
    for ids, lengths in RAGGED.items():
        if ids not in arrays:
            continue
        if lengths not in arrays:
            raise StoreError(f"{ids} is present without {lengths}; expected both, or neither.")
        came, total = arrays[ids].size, int(arrays[lengths].sum())
        if came != total:
            raise StoreError(f"{ids} holds {came} tokens; expected sum({lengths}) = {total}.")
    if "response_ids" in arrays and "sampled_id" in arrays:
        start = np.cumsum(arrays["length"]) - arrays["length"]
        drawn = arrays["response_ids"][start[rollout] + position]
        sampled = arrays["sampled_id"]
        _check("sampled_id", sampled, sampled != drawn, "the token of response_ids at that place")
