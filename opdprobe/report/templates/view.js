
// The reader's actions: choose a token, turn to another step or rollout, follow a link.

function choose(name, position, focus = true) {
  const pane = panes[name], span = pane.spans[position];
  for (const other of Object.values(panes)) {
    other.spans[other.selected]?.setAttribute("aria-selected", "false");
    if (other !== pane) other.selected = -1;
  }
  if (name === "a") view.token = position;
  remember();
  markWorst();
  detail(pane, position);
  if (!span) return;
  pane.spans[pane.selected]?.setAttribute("tabindex", "-1");
  pane.spans[0].tabIndex = -1;
  pane.selected = position;
  span.tabIndex = 0;
  span.setAttribute("aria-selected", "true");
  span.setAttribute("aria-label", spoken(pane, position));
  if (focus) {
    foldDetail(false);
    span.focus({ preventScroll: true });
    span.scrollIntoView({ block: "nearest" });
  }
}

// On a narrow screen the token's panel covers half of the page; folded, it is one line.
function foldDetail(folded) {
  byId("detail").classList.toggle("folded", folded);
  byId("fold").textContent = folded ? "more" : "less";
  byId("fold").setAttribute("aria-expanded", String(!folded));
}

function spoken(pane, position) {
  const name = inList(token(pane.run, pane.response[position])), state = pane.states[position];
  if (state < 0) return `${name}, token ${position}, ${pane.origins[position] === "given" ? "not drawn by the student" : "not recorded"}`;
  const [p, q] = [0, 1].map((model) => chance(probability(pane.data.sampled[state * 2 + model])));
  const out = level(quantity(), value(pane, position)).replace(/bad|good/, "level ");
  return `${name}, token ${position}, ${quantity().long_name} ${withUnit(value(pane, position), quantity())}${out ? ", " + out : ""}${isKept(pane.data.marks, state, view.mark) ? ", kept" : ""}, student ${p}, teacher ${q}`;
}

function detail(pane, position) {
  const state = pane.states[position] ?? -1, known = state >= 0, { data, head, run } = pane;
  const title = byId("detail-title");
  title.replaceChildren();
  if (position < pane.response.length) {
    title.append(make("bdi", "", inList(token(run, pane.response[position]))), make("span", "note", ` token ${position} of ${pane.response.length}, id ${pane.response[position]}, ${quantity().long_name} ${known ? withUnit(value(pane, position), quantity()) : "not recorded"}${pane === panes.b ? ", beside" : ""}`));
  }
  byId("lists").hidden = !known;
  byId("numbers").replaceChildren(...index.quantities.flatMap((one, by) => {
    if (!known || !one.units) return [];
    const row = make("div", by === view.by ? "chosen" : "");
    row.append(make("dt", "", one.long_name), make("dd", "", number(value(pane, position, by))));
    return [row];
  }));
  byId("drawn").textContent = "";
  if (!known) return;
  const { k } = head, drawn = pane.response[position];
  const lists = [0, 1].map((support) => data.ids.subarray((state * 2 + support) * k, (state * 2 + support + 1) * k));
  const own = [0, 1].map((model) => data.logp.subarray((state * 4 + model * 3) * k, (state * 4 + model * 3 + 1) * k));
  const both = sharedTokens(lists, own);
  ["student", "teacher"].forEach((owner, support) => {
    const table = byId(`list-${owner}`), sums = [0, 0];
    table.caption.textContent = `${owner}'s top ${k}`;
    const rows = Array.from(lists[support], (id, rank) => {
      const row = make("tr", `${both.has(id) ? "both" : ""} ${id === drawn ? "drawn" : ""}`);
      const mark = make("td", "", (both.has(id) ? "●" : "") + (id === drawn ? "▸" : ""));
      mark.append(make("span", "hidden", `${both.has(id) ? " in both" : ""}${id === drawn ? " drawn" : ""}`));
      const one = token(run, id), name = make("td", `k-${one.kind}`, inList(one));
      name.title = `${inList(one)} (id ${id})`;
      row.append(mark, name);
      for (const model of [0, 1]) {
        const p = probability(data.logp[((state * 2 + model) * 2 + support) * k + rank]);
        sums[model] += p;
        const cell = make("td", model === support ? "own" : "", chance(p));
        if (model === support) cell.style.setProperty("--share", `${100 * p}%`);
        row.append(cell);
      }
      return row;
    });
    const sum = make("tr", "sum");
    sum.append(make("td"), make("td", "", "together"), ...sums.map((p) => make("td", "", chance(p))));
    table.tBodies[0].replaceChildren(...rows, sum);
  });
  if (!lists[0].includes(drawn) && !lists[1].includes(drawn) && drawn >= 0) {
    const [p, q] = [0, 1].map((model) => chance(probability(data.sampled[state * 2 + model])));
    byId("drawn").textContent = `: ${inList(token(run, drawn))}, in neither list, p ${p}, q ${q}`;
  }
}

// ---- the view, in the address

function remember() {
  const parts = { run: view.run, step: stepNumber(view), rollout: view.rollout, token: view.token, by: quantity().name };
  if (view.with) parts.with = key(view.with);
  if (view.scope === "step") parts.scope = "step";
  if (view.only) parts.only = view.only;
  if (view.mark >= 0) parts.mark = index.selectors[view.mark][0];
  // Browsers refuse more than about three changes per second, which a held arrow key would exceed.
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", "#" + new URLSearchParams(parts)), 400);
}

function read() {
  const wish = new URLSearchParams(location.hash.slice(1)), whole = (name) => (/^\d+$/.test(wish.get(name) ?? "") ? Number(wish.get(name)) : null);
  const run = Math.min(whole("run") ?? 0, index.runs.length - 1), { steps } = index.runs[run];
  const off = ({ step }) => Math.abs(step - (whole("step") ?? 0)); // a link may name a step left out here
  const step = steps.reduce((best, one, i) => (off(one) < off(steps[best]) ? i : best), 0);
  const rows = steps[step].n_states;
  const rollout = Math.min(whole("rollout") ?? Math.max(rows.findIndex((n) => n > 0), 0), rows.length - 1);
  const astray = off(steps[step]) > 0 && whole("step") !== null || rollout < whole("rollout");
  byId("astray").textContent = astray ? `The link leads to step ${whole("step") ?? steps[step].step}, rollout ${whole("rollout") ?? 0}, which this page does not have; the nearest is shown.` : "";
  byId("astray").hidden = !astray;
  const by = index.quantities.findIndex((one) => one.name === wish.get("by") && one.units);
  view = { run, step, rollout, token: whole("token"), by: by >= 0 ? by : Math.max(index.quantities.findIndex((one) => one.units), 0), scope: wish.get("scope") === "step" ? "step" : "rollout", only: filters.find(({ value }) => value === wish.get("only"))?.value ?? "", mark: index.selectors.findIndex(([name]) => name === wish.get("mark")), with: null };
  const other = wish.get("with") ? place(wish.get("with")) : null;
  if (other && companions(view).some((one) => same(one, other))) view.with = other;
  return draw();
}

// Change what is shown. The second pane follows: the same prompt, or nothing.
function go(change) {
  const before = view.with;
  byId("astray").hidden = true;
  view = { ...view, token: null, ...change };
  view.rollout = Math.min(view.rollout, header(view).n_states.length - 1);
  if (!("rollout" in change)) view.rollout = nearestMatch(view);
  if (before && !("with" in change)) {
    const others = companions(view);
    view.with = others.find((one) => same(one, before)) ?? others.find((one) => one.run === before.run && one.rollout === view.rollout) ?? others.find((one) => one.run === before.run) ?? null;
  }
  return draw();
}

const turn = (what, by) => {
  const to = what === "rollout" ? nextMatch(view, by) : view.step + by;
  if (to >= 0 && to < (what === "step" ? index.runs[view.run].steps : header(view).n_states).length) return go({ [what]: to });
};

// ---- input

// The nearest token below or above, for the arrow keys.
function vertical({ spans }, from, direction) {
  const centre = (span) => { const box = span.getClientRects()[0]; return [box.left + box.width / 2, box.top]; };
  const [x, y] = centre(spans[from]);
  let line = null, best = from, distance = Infinity;
  for (let i = from + direction; i >= 0 && i < spans.length; i += direction) {
    const [other, top] = centre(spans[i]);
    if (Math.abs(top - y) < 4) continue;
    line ??= top;
    if (Math.abs(top - line) >= 4) break;
    if (Math.abs(other - x) < distance) [best, distance] = [i, Math.abs(other - x)];
  }
  return best;
}

function listen() {
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("run").addEventListener("change", (event) => {
    const run = Number(event.target.value), step = index.runs[run].steps.findIndex((one) => one.step === stepNumber(view));
    go({ run, step: Math.max(step, 0) });
  });
  byId("step").addEventListener("change", (event) => go({ step: Number(event.target.value) }));
  byId("rollout").addEventListener("change", (event) => go({ rollout: Number(event.target.value) }));
  byId("mark").addEventListener("change", (event) => go({ mark: Number(event.target.value), token: view.token, with: view.with }));
  byId("by").addEventListener("change", (event) => go({ by: Number(event.target.value), token: view.token, with: view.with }));
  byId("with").addEventListener("change", (event) => go({ with: event.target.value ? place(event.target.value) : null, token: view.token }));
  byId("scope").addEventListener("change", (event) => { view.scope = event.target.value; rank(); markWorst(); remember(); });
  for (const what of ["step", "rollout"]) {
    byId(`${what}-back`).addEventListener("click", () => turn(what, -1));
    byId(`${what}-on`).addEventListener("click", () => turn(what, 1));
  }
  for (const [id, by] of [["token-back", -1], ["token-on", 1]]) {
    byId(id).addEventListener("click", () => {
      const name = panes.b?.selected >= 0 ? "b" : "a", to = panes[name].selected + by;
      if (to < 0 || to >= panes[name].spans.length) return;
      choose(name, to, false);
      panes[name].spans[to].scrollIntoView({ block: "nearest" });
    });
  }
  listenFind();
  byId("fold").addEventListener("click", () => foldDetail(!byId("detail").classList.contains("folded")));
  byId("worst").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) jump(Number(button.dataset.worst));
  });
  for (const name of ["a", "b"]) {
    const box = byId(`pane-${name}`).querySelector(".response");
    const at = (event) => event.target.closest("[data-token]")?.dataset.token;
    box.addEventListener("click", (event) => at(event) !== undefined && choose(name, Number(at(event))));
    box.addEventListener("focusin", (event) => at(event) !== undefined && Number(at(event)) !== panes[name].selected && choose(name, Number(at(event))));
    box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && at(event) !== undefined && detail(panes[name], Number(at(event))));
    box.addEventListener("pointerleave", () => {
      const shown = Object.values(panes).find((pane) => pane.selected >= 0);
      if (shown) detail(shown, shown.selected);
    });
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || at(event) === undefined) return;
      const pane = panes[name], from = Number(at(event));
      const to = { ArrowLeft: () => from - 1, ArrowRight: () => from + 1, ArrowUp: () => vertical(pane, from, -1),
        ArrowDown: () => vertical(pane, from, 1), Home: () => 0, End: () => pane.spans.length - 1 }[event.key]?.();
      if (to === undefined) return;
      event.preventDefault();
      if (to >= 0 && to < pane.spans.length) choose(name, to);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
    const action = { "/": () => byId("query").focus(), n: () => jump(markWorst() + 1), p: () => jump(Math.max(markWorst() - 1, 0)), "[": () => turn("rollout", -1),
      "]": () => turn("rollout", 1), "{": () => turn("step", -1), "}": () => turn("step", 1) }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  addEventListener("hashchange", read);
}

async function start() {
  index = JSON.parse(new TextDecoder().decode(await inflate("index")));
  for (const run of index.runs) {
    run.texts = new Map(run.token_id.map((id, i) => [id, { kind: run.token_kind[i], text: run.token_text[i] }]));
  }
  filters = allFilters();
  byId("models").textContent = index.runs.map(({ label, student, teacher, prompts }) => `${index.runs.length > 1 ? label + ": " : ""}student ${student ?? "unknown"}, teacher ${teacher ?? "unknown"}${prompts ? `, prompts: ${prompts}` : ""}`).join(" · ");
  byId("notices").replaceChildren(...index.notices.map((notice) => make("li", "", notice)));
  byId("notices").hidden = index.notices.length === 0;
  foldDetail(true);
  listen();
  byId("app").hidden = false;
  await read();
  byId("status").remove();
}

start().catch((error) => {
  byId("status").className = "problem";
  byId("status").textContent = typeof DecompressionStream === "undefined"
    ? "This browser cannot unpack the page's data: use one from 2023 or later."
    : `The page's data cannot be shown: ${error}`;
});
