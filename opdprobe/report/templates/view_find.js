
// Find rollouts and tokens: by their labels, by their text, and in the tables of the whole run.

const MOST_VALUES = 50, MOST_FOUND = 100;

let filters = []; // {value, label, name, text}: the choices of "Rollouts"
let searching; // the search in progress

// What a rollout can be chosen by.
function facts({ correct, finished, labels }, rollout) {
  const of = { grade: correct[rollout] === 0 || correct[rollout] === 1 ? grade(correct[rollout]) : null, end: ended(finished[rollout]) };
  for (const [name, values] of Object.entries(labels)) of[name] = values[rollout] || null;
  return of;
}

// Every value of every label; not of a label that tells nearly every rollout from the others.
function allFilters() {
  const found = new Map();
  for (const { steps } of index.runs) {
    for (const head of steps) {
      for (const rollout of head.n_states.keys()) {
        for (const [name, text] of Object.entries(facts(head, rollout))) {
          if (!found.has(name)) found.set(name, new Set());
          if (text !== null && found.get(name).size <= MOST_VALUES) found.get(name).add(text);
        }
      }
    }
  }
  return [...found].flatMap(([name, texts]) => (texts.size > MOST_VALUES ? [] : [...texts].sort().map((text) => ({ value: JSON.stringify([name, text]), label: `${name}: ${text}`, name, text }))));
}

function matches(place) {
  const only = filters.find(({ value }) => value === view.only);
  return !only || facts(header(place), place.rollout)[only.name] === only.text;
}

// The next rollout of the step that is among those chosen; -1 if there is none.
function nextMatch(place, by) {
  const n = header(place).n_states.length;
  for (let rollout = place.rollout + by; rollout >= 0 && rollout < n; rollout += by) {
    if (matches({ ...place, rollout })) return rollout;
  }
  return -1;
}

// The same rollout if it is among those chosen, or the step's first that is; else it stays.
function nearestMatch(place) {
  if (matches(place)) return place.rollout;
  const first = nextMatch({ ...place, rollout: -1 }, 1);
  return first < 0 ? place.rollout : first;
}

function drawFilter() {
  byId("only-field").hidden = filters.length === 0;
  fill(byId("only"), [{ value: "", label: "all" }, ...filters], view.only);
}

// Look through the prompts, the student's and the teacher's, and responses of the run's rollouts on this page, those chosen only.
async function search(query) {
  const mine = (searching = {}), { run } = view, { steps, gap } = index.runs[run], list = byId("found");
  const wanted = query.toLowerCase();
  let rollouts = 0, times = 0;
  list.replaceChildren();
  byId("found-note").textContent = wanted ? "Searching …" : "";
  if (!wanted) return;
  for (const step of steps.keys()) {
    const data = await load(run, step), head = steps[step];
    if (searching !== mine) return; // another search began meanwhile
    for (const rollout of head.n_states.keys()) {
      if (!matches({ run, step, rollout })) continue;
      const part = (ids, offsets, lengths) => searchable(Array.from(ids.subarray(offsets[rollout], offsets[rollout] + lengths[rollout]), (id) => token(run, id)), gap);
      const texts = [part(data.response, data.responses, head.n_response), part(data.prompt, data.prompts, head.n_prompt), part(data.teacherPrompt, data.teacherPrompts, head.n_teacher_prompt)];
      const n = texts.map(({ text }) => text.toLowerCase().split(wanted).length - 1);
      if (!n.some(Boolean)) continue;
      rollouts += 1;
      times += n[0] + n[1] + n[2];
      if (rollouts > MOST_FOUND) continue;
      const where = n.findIndex(Boolean), { text, starts } = texts[where], at = text.toLowerCase().indexOf(wanted), end = at + wanted.length;
      const item = make("li"), button = make("button", "", `step ${head.step}, rollout ${rollout}${["", ", prompt", ", the teacher's prompt"][where]}`);
      button.type = "button";
      button.addEventListener("click", () => goTo({ run, step, rollout, token: n[0] ? tokenAt(starts, at) : null }));
      item.append(button, " ", make("bdi", "excerpt", text.slice(Math.max(0, at - 40), at)), make("mark", "", text.slice(at, end)), make("bdi", "excerpt", text.slice(end, end + 40)));
      list.append(item);
    }
  }
  const first = rollouts > MOST_FOUND ? `; the first ${MOST_FOUND} are listed` : "";
  byId("found-note").textContent = `${times} times in ${rollouts} rollouts of the steps on this page${view.only ? ", of those chosen" : ""}${first}.`;
}

const goTo = (to) => go({ with: null, ...to }).then(() => to.token !== null && choose("a", to.token));

// ---- the tables of the whole run, drawn when they are opened

function drawTables() {
  const { tokens } = index.runs[view.run], whole = byId("whole");
  whole.hidden = !tokens;
  if (!tokens || !whole.open || whole.dataset.run === String(view.run)) return;
  whole.dataset.run = view.run;
  const { long_name, n, infinite, n_tokens, rows, worst } = tokens;
  byId("whole-note").textContent = `${long_name} [nats] at the ${n.toLocaleString("en")} states of the run, of all its steps, at which each token was drawn${infinite ? `; ${infinite} of them are infinite and count in no share` : ""}.`;
  byId("strings").caption.textContent = rows.length < n_tokens ? `${rows.length} of ${n_tokens.toLocaleString("en")} tokens, those with the largest sums` : "All tokens, by their sums";
  byId("strings").tBodies[0].replaceChildren(...rows.map(([kind, text, n, mean, share]) => {
    const row = make("tr"), share_text = Number.isNaN(Number(share)) ? "–" : `${number(100 * share)} %`;
    const name = make("th", `k-${kind}`);
    name.scope = "row";
    name.append(make("bdi", "", inList({ text })));
    row.append(name, make("td", "", n.toLocaleString("en")), make("td", "", number(Number(mean))), make("td", "", share_text));
    return row;
  }));
  byId("divergent").tBodies[0].replaceChildren(...worst.map((one) => divergent(view.run, one)));
}

function divergent(run, [value, step, rollout, position, ids, at]) {
  const row = make("tr"), context = make("td", "context"), place = make("td"), { gap, steps } = index.runs[run];
  const text = (some) => some.map((id) => token(run, id).text.replaceAll("\n", "↵")).join(gap);
  context.append(make("bdi", "", text(ids.slice(0, at)) + gap), make("mark", "", inList(token(run, ids[at]))), make("bdi", "", gap + text(ids.slice(at + 1))));
  const where = steps.findIndex((one) => one.step === step), name = `step ${step}, rollout ${rollout}, token ${position}`;
  if (where >= 0 && rollout < steps[where].n_states.length) {
    const button = make("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => goTo({ run, step: where, rollout, token: position }));
    place.append(button);
  } else place.textContent = `${name} (not on this page)`;
  row.append(make("td", "", number(Number(value))), context, place);
  return row;
}

function listenFind() {
  byId("only").addEventListener("change", (event) => {
    view.only = event.target.value;
    go({ step: nearestStep() });
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search(byId("query").value);
  });
  byId("whole").addEventListener("toggle", drawTables);
}

// The step, nearest to the one shown, that has a rollout of those chosen.
function nearestStep() {
  const { steps } = index.runs[view.run], by = (step) => Math.abs(step - view.step);
  const have = [...steps.keys()].filter((step) => steps[step].n_states.some((_, rollout) => matches({ ...view, step, rollout })));
  return have.sort((x, y) => by(x) - by(y))[0] ?? view.step;
}
