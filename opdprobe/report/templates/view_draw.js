
// Draw the page from its state. Every string is set with textContent, so that a model's text stays
// text.

const WORST = 24; // number of buttons in the list of the worst tokens

let view = {}; // what is shown: run, step (index), rollout, token, by, with {run, step, rollout}, scope, only
const panes = {}; // a, b: {run, step, rollout, data, spans, states} as drawn
let remembering; // the timer that writes the view to the address
let worst = []; // the worst tokens of the scope, worst first: {rollout, token, value}

const quantity = () => index.quantities[view.by];
const header = (place) => index.runs[place.run].steps[place.step];
const ended = (finished) => (finished === null ? null : finished ? "finished" : "cut off");
const grade = (correct) => (correct === null ? null : correct === 1 ? "correct" : correct === 0 ? "wrong" : `score ${number(correct)}`);

function rolloutLabel(place) {
  const { prompt_id, correct, n_response, n_states } = header(place), row = place.rollout;
  const parts = [row, prompt_id[row], grade(correct[row]), `${n_response[row]} tokens`];
  if (n_states[row] === 0) parts.push("not recorded");
  return parts.filter((part) => part !== null).join(" · ");
}

// Other rollouts of the same prompt. Those of other runs and steps come first: they matter most.
function companions(place) {
  const prompt = header(place).prompt_id[place.rollout], found = [];
  if (prompt === null) return found;
  index.runs.forEach(({ steps }, run) => steps.forEach((one, step) => one.prompt_id.forEach((id, rollout) => {
    const other = { run, step, rollout };
    if (id === prompt && !same(other, place)) found.push(other);
  })));
  const here = (other) => (other.run === place.run) + (other.step === place.step) * (other.run === place.run);
  return found.sort((x, y) => here(x) - here(y) || distance(x, place) - distance(y, place));
}
const stepNumber = (place) => header(place).step;
const distance = (x, y) => Math.abs(stepNumber(x) - stepNumber(y)) * 1e4 + Math.abs(x.rollout - y.rollout);
const same = (x, y) => x.run === y.run && x.step === y.step && x.rollout === y.rollout;
const key = ({ run, step, rollout }) => `${run}.${index.runs[run].steps[step].step}.${rollout}`;

function place(text) {
  const [run, number, rollout] = text.split(".").map(Number);
  const step = index.runs[run]?.steps.findIndex((one) => one.step === number) ?? -1;
  return step >= 0 && rollout in index.runs[run].steps[step].n_states ? { run, step, rollout } : null;
}

async function draw() {
  const drawing = { ...view };
  view.drawing = drawing;
  const [a, b] = await Promise.all([view, view.with].map((one) => one && load(one.run, one.step)));
  if (view.drawing !== drawing) return; // another choice was made meanwhile
  const reading = document.activeElement.closest(".response") !== null;
  drawControls();
  drawPane("a", view, a);
  byId("pane-b").hidden = !view.with;
  byId("panes").classList.toggle("two", Boolean(view.with));
  if (view.with) drawPane("b", view.with, b);
  drawLegend();
  rank();
  drawTables();
  if (view.token === null || view.token >= panes.a.spans.length) view.token = worst.find((one) => one.rollout === view.rollout)?.token ?? 0;
  choose("a", view.token, reading);
}

function drawControls() {
  const { steps } = index.runs[view.run], rows = header(view).n_states.length;
  byId("run-field").hidden = index.runs.length < 2;
  fill(byId("run"), index.runs.map(({ label }, value) => ({ value, label })), view.run);
  fill(byId("step"), steps.map(({ step }, value) => ({ value, label: step })), view.step);
  const shown = Array.from({ length: rows }, (_, rollout) => rollout).filter((rollout) => rollout === view.rollout || matches({ ...view, rollout }));
  fill(byId("rollout"), shown.map((rollout) => ({ value: rollout, label: rolloutLabel({ ...view, rollout }) + (matches({ ...view, rollout }) ? "" : " (not among those chosen)") })), view.rollout);
  drawFilter();
  fill(byId("by"), index.quantities.flatMap(({ long_name, name, units }, value) => units ? [{ value, label: long_name ?? name }] : []), view.by);
  byId("mark-field").hidden = index.selectors.length === 0;
  fill(byId("mark"), [{ value: -1, label: "none" }, ...index.selectors.map(([, label], value) => ({ value, label }))], view.mark);
  byId("step-back").disabled = view.step === 0;
  byId("step-on").disabled = view.step === steps.length - 1;
  byId("rollout-back").disabled = nextMatch(view, -1) < 0;
  byId("rollout-on").disabled = nextMatch(view, 1) < 0;
  const others = companions(view);
  const label = (other) => `${index.runs.length > 1 ? index.runs[other.run].label + " · " : ""}step ${stepNumber(other)} · ${rolloutLabel(other)}`;
  const none = { value: "", label: others.length ? "nothing" : "nothing: no other rollout of this prompt" };
  fill(byId("with"), [none, ...others.map((other) => ({ value: key(other), label: label(other) }))], view.with ? key(view.with) : "");
  byId("with").disabled = others.length === 0;
  byId("scope").value = view.scope;
}

function drawLegend() {
  const one = quantity(), { bounds, worse, two_sided } = one, list = byId("legend").querySelector("ol");
  const unit = one.units === "nats" ? ", nats" : "";
  byId("legend").querySelector("figcaption").textContent =
    `${one.long_name}${unit}: half of all tokens are plain, the outermost 1 % have the thickest bar`;
  const top = (i) => 5 - bounds.length + i + 1, sign = two_sided ? -1 : worse;
  const range = (i, sign) => {
    const [near, far] = [bounds[i], bounds[i + 1]].map((bound) => (bound === undefined ? undefined : number(two_sided ? sign * bound : bound)));
    return far === undefined ? `${sign > 0 ? ">" : "<"} ${near}` : `${near} to ${far}`;
  };
  const items = bounds.map((_, i) => make("li", `bad${top(i)}`, range(i, sign)));
  const plain = bounds.length ? (two_sided ? `±${number(bounds[0])}` : `${worse > 0 ? "≤" : "≥"} ${number(bounds[0])}`) : "all";
  items.unshift(make("li", "", plain));
  if (two_sided) bounds.forEach((_, i) => items.unshift(make("li", `good${top(i)}`, range(i, 1))));
  if (Object.values(panes).some(({ origins }) => origins.includes("given"))) items.push(make("li", "given", "not drawn by the student, as of a tool or a user"));
  if (view.mark >= 0) items.push(make("li", "kept", `kept: ${index.selectors[view.mark][1]}`));
  list.replaceChildren(...items);
}

function tokenSpan(run, id) {
  const one = token(run, id), blank = one.kind === "text" && /^\s+$/.test(one.text);
  const text = inText(one), lead = !blank && one.kind === "text" && text.startsWith(" ") ? " " : "";
  const span = make("span", `k-${blank ? "blank" : one.kind}`, blank ? text.replaceAll(" ", "␣") : text.slice(lead.length));
  if (lead) span.dataset.lead = lead;
  return span;
}

function drawPane(name, { run, step, rollout }, data) {
  const pane = byId(`pane-${name}`), head = header({ run, step }), { gap } = index.runs[run];
  const slice = (array, offsets, lengths) => array.subarray(offsets[rollout], offsets[rollout] + lengths[rollout]);
  const prompt = slice(data.prompt, data.prompts, head.n_prompt);
  const teacherPrompt = slice(data.teacherPrompt, data.teacherPrompts, head.n_teacher_prompt);
  const response = slice(data.response, data.responses, head.n_response);
  const n_states = head.n_states[rollout], first = data.states[rollout];
  byId(`title-${name}`).textContent = `${index.runs.length > 1 ? index.runs[run].label + ", " : ""}step ${head.step}, rollout ${rollout}`;
  for (const [part, ids] of [["of-student", prompt], ["of-teacher", teacherPrompt]]) {
    const box = pane.querySelector(`.${part}`);
    box.hidden = ids.length === 0;
    box.querySelector(".text").replaceChildren(...promptTurns(run, Array.from(ids), gap));
  }
  pane.querySelector(".of-student summary").textContent = teacherPrompt.length ? "The student's prompt" : "Prompt";

  // The index of each token's state in the block; -1 if none was recorded.
  const states = new Int32Array(response.length).fill(-1);
  for (let i = first; i < first + n_states; i++) states[data.position[i]] = i;
  const spans = Array.from(response, (id, position) => {
    const span = tokenSpan(run, id);
    span.dataset.token = position;
    span.dataset.kind = span.className;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    span.tabIndex = -1;
    return span;
  });
  const box = pane.querySelector(".response");
  box.replaceChildren(...spaced(spans, gap));
  box.setAttribute("aria-label", `Response, ${response.length} tokens`);
  if (spans.length) spans[0].tabIndex = 0;
  else box.textContent = "(no tokens)";
  panes[name] = { run, step, rollout, data, head, response, spans, states, origins: origins(states), selected: -1 };
  colour(name);
  const facts = [head.prompt_id[rollout] === null ? null : `prompt ${head.prompt_id[rollout]}`, grade(head.correct[rollout]),
    ended(head.finished[rollout]), `${response.length} tokens${n_states < response.length ? `, ${n_states} recorded` : ""}`, turns(name), keeps(name),
    ...Object.entries(head.labels).map(([label, values]) => (values[rollout] ? `${label}: ${values[rollout]}` : null)), mean(name)];
  if (name === "b" && shared() > 0) facts.push(`the first ${shared()} tokens are the same`);
  pane.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
}

// Each turn in a box of its own, so that neighbours can have different shades.
function promptTurns(run, ids, gap) {
  const tokens = ids.map((id) => token(run, id)), starts = turnStarts(ids, tokens);
  return starts.map((start, i) => make("span", "turn", (i ? gap : "") + tokens.slice(start, starts[i + 1]).map(inText).join(gap)));
}

// How many turns of the student a response has, if a tool or a user has one in between.
function turns(name) {
  const { origins } = panes[name], n = origins.filter((one, i) => one === "drawn" && origins[i - 1] !== "drawn").length;
  return origins.includes("given") ? `${n} turns of the student` : null;
}

// How many of the recorded tokens the chosen selector keeps.
function keeps(name) {
  const { states, data } = panes[name], recorded = states.filter((state) => state >= 0);
  return view.mark >= 0 ? `${recorded.filter((state) => isKept(data.marks, state, view.mark)).length} of ${recorded.length} kept` : null;
}

// A token's leading space is before its box: inside, it would hang at the end of a line.
const spaced = (spans, gap) => spans.flatMap((span, i) => [(i ? gap : "") + (span.dataset.lead ?? ""), span]);

function shared() {
  const [a, b] = [panes.a, panes.b].map(({ response, run }) => Array.from(response, (id) => token(run, id).text));
  const n = a.findIndex((text, i) => text !== b[i]);
  return n < 0 ? a.length : n;
}

const value = (pane, position, by = view.by) => (pane.states[position] < 0 ? NaN : pane.data.values[by * pane.head.n + pane.states[position]]);

function mean(name) {
  const pane = panes[name], all = Array.from(pane.spans, (_, i) => value(pane, i)).filter((x) => !Number.isNaN(x));
  return all.length ? `mean ${quantity().long_name} ${withUnit(all.reduce((sum, x) => sum + x, 0) / all.length, quantity())}` : null;
}

function colour(name) {
  const pane = panes[name];
  pane.spans.forEach((span, i) => {
    const kept = isKept(pane.data.marks, pane.states[i], view.mark) ? " kept" : "";
    span.className = `t ${span.dataset.kind} ${pane.states[i] < 0 ? pane.origins[i] : level(quantity(), value(pane, i))}${kept}`;
  });
}

function rank() {
  const { data, head } = panes.a, { worse, two_sided } = quantity(), found = [];
  const rows = view.scope === "step" ? [...head.n_states.keys()].filter((rollout) => matches({ ...view, rollout })) : [view.rollout];
  for (const rollout of rows) {
    for (let i = data.states[rollout], end = i + head.n_states[rollout]; i < end; i++) {
      const value = data.values[view.by * head.n + i];
      if (!Number.isNaN(value)) found.push({ rollout, token: data.position[i], value, id: data.response[data.responses[rollout] + data.position[i]] });
    }
  }
  const badness = ({ value }) => (worse ? worse * value : Math.abs(value));
  worst = found.sort((x, y) => (badness(x) === badness(y) ? 0 : badness(y) - badness(x)));
  byId("worst-title").textContent = worse ? `${worse < 0 ? "Lowest" : "Highest"} ${quantity().long_name}` : `Furthest from 0: ${quantity().long_name}`;
  byId("worst").querySelector("ol").replaceChildren(...worst.slice(0, WORST).map((one, i) => {
    const item = make("li"), button = make("button");
    button.type = "button";
    button.dataset.worst = i;
    button.append(make("bdi", "", inList(token(view.run, one.id))), " ", make("span", "value", number(one.value)));
    const where = view.scope === "step" ? `rollout ${one.rollout}, token ${one.token}` : `token ${one.token}`;
    if (view.scope === "step") button.append(make("span", "value", ` in ${one.rollout}`));
    button.title = where;
    button.setAttribute("aria-label", `${inList(token(view.run, one.id))}, ${where}, ${withUnit(one.value, quantity())}`);
    item.append(button);
    return item;
  }));
}

function jump(i) {
  const one = worst[i];
  if (!one) return;
  if (one.rollout === view.rollout) choose("a", one.token);
  else go({ rollout: one.rollout, token: one.token }).then(() => choose("a", one.token));
}

function markWorst() {
  const at = worst.findIndex((one) => one.rollout === view.rollout && one.token === view.token);
  byId("worst").querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-current", String(i === at)));
  return at;
}
