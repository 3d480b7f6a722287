
"use strict";
// The page's data, unpacked: an index as JSON and one block per step (opdprobe/report/view_data.py),
// each gzipped, in base64. Also the formats of numbers and tokens.

const byId = (id) => document.getElementById(id);
const LOGP_UNIT = 1e-3, ZERO = 65534, UNKNOWN = 65535;

let index; // runs with their steps, quantities, notices

async function inflate(id) {
  const binary = atob(byId(id).textContent), packed = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) packed[i] = binary.charCodeAt(i); // .from takes seconds here
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const starts = (lengths) => {
  let sum = 0;
  return lengths.map((n) => (sum += n) - n);
};

// A step's arrays, as views into its block; unpacked once.
async function load(run, step) {
  const header = index.runs[run].steps[step];
  header.data ??= inflate(header.block).then((buffer) => {
    const { n, k } = header, total = (lengths) => lengths.reduce((sum, one) => sum + one, 0);
    let offset = 0;
    const take = (Type, length) => {
      const view = new Type(buffer, offset, length);
      offset += view.byteLength;
      return view;
    };
    return {
      values: take(Float32Array, index.quantities.length * n), // (quantity, state)
      position: take(Int32Array, n),
      ids: take(Int32Array, n * 2 * k), // (state, support, rank)
      prompt: take(Int32Array, total(header.n_prompt)),
      teacherPrompt: take(Int32Array, total(header.n_teacher_prompt)),
      response: take(Int32Array, total(header.n_response)),
      logp: take(Uint16Array, n * 4 * k), // (state, model, support, rank)
      sampled: take(Uint16Array, n * 2), // (state, model)
      marks: take(Uint16Array, n), // a bit for each selector that keeps the state
      states: starts(header.n_states), prompts: starts(header.n_prompt), teacherPrompts: starts(header.n_teacher_prompt), responses: starts(header.n_response),
    };
  });
  return header.data;
}

const probability = (fixed) => (fixed === UNKNOWN ? NaN : fixed === ZERO ? 0 : Math.exp(-fixed * LOGP_UNIT));

// Tokens in both models' lists. One of probability 0 only fills a list up: it is no candidate.
function sharedTokens(lists, own) {
  const [student, teacher] = lists.map((ids, model) => new Set(ids.filter((_, rank) => own[model][rank] !== ZERO)));
  return new Set([...student].filter((id) => teacher.has(id)));
}

// For each response token, from its state (-1: none): "given" where one has no state although a
// later one has: as a rule, a tool or a user wrote it. The last ones may just not be recorded.
function origins(states) {
  const last = states.findLastIndex((state) => state >= 0);
  return Array.from(states, (state, i) => (state >= 0 ? "drawn" : i < last ? "given" : "none"));
}

// Where the turns of a prompt begin. No template is known here: a turn is taken to begin with the
// first special token that occurs again.
function turnStarts(ids, tokens) {
  const special = ids.filter((_, i) => tokens[i].kind === "special");
  const mark = special.find((id) => special.indexOf(id) !== special.lastIndexOf(id));
  const found = ids.flatMap((id, i) => (id === mark ? [i] : []));
  return found[0] === 0 ? found : [0, ...found];
}

// The text of tokens, and where each begins in it; parts of a character are put together. A token
// that is longer in lower case is in lower case: places in the text and in its lower case agree.
function searchable(tokens, gap) {
  let text = "", bytes = [];
  const add = (piece) => { text += piece.toLowerCase().length === piece.length ? piece : piece.toLowerCase(); };
  const join = () => {
    if (bytes.length) add(new TextDecoder().decode(new Uint8Array(bytes)));
    bytes = [];
  };
  const starts = tokens.map((one, i) => {
    if (one.kind !== "bytes" || gap) join();
    if (i) add(gap);
    const start = text.length;
    if (one.kind === "bytes") bytes.push(...one.text.split(" ").map((byte) => parseInt(byte, 16)));
    else add(one.text);
    return start;
  });
  join();
  return { text, starts };
}

// The place of the token that a place in the text belongs to.
const tokenAt = (starts, at) => starts.indexOf(starts.findLast((start) => start <= at));

function token(run, id) {
  const { texts } = index.runs[run];
  return texts.get(id) ?? { kind: "id", text: id < 0 ? "?" : String(id) };
}

// In a list every space is marked; in running text only text that would be invisible.
const inList = ({ text }) => (text === "" ? "(empty)" : text.replace(/^ +| +$/g, (s) => "␣".repeat(s.length)).replaceAll("\n", "↵"));
const inText = ({ text }) => text.replaceAll("\n", "↵\n");

function number(value, digits = 3) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "−");
}
const chance = (p) => (Number.isNaN(p) ? "–" : p >= 0.001 ? p.toFixed(3) : p === 0 ? "0" : p.toExponential(0).replace("-", "−"));
const withUnit = (value, { units }) => number(value) + (units === "nats" && Number.isFinite(value) ? " nats" : "");

// How far out a value is: 0 common … 5 rare; bounds may be fewer than five, so count from the top.
// Of a quantity with two sides, values above 0 have the other colour.
function level(quantity, value) {
  if (Number.isNaN(value)) return "undefined";
  const { worse, two_sided, bounds } = quantity;
  const out = two_sided ? Math.abs(value) : worse * value;
  const passed = bounds.filter((bound) => out > (two_sided ? bound : worse * bound)).length;
  if (passed === 0) return "";
  return (two_sided && value > 0 ? "good" : "bad") + (5 - bounds.length + passed);
}

// Whether a selector keeps a state; without a selector or a state, no.
const isKept = (marks, state, selector) => selector >= 0 && state >= 0 && ((marks[state] >> selector) & 1) === 1;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(({ value, label }) => new Option(label, value)));
  select.value = value;
}
