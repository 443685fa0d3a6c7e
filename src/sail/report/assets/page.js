"use strict";
// The pair browser and the charts' highlighting. Texts are set as textContent only: they are untrusted.
(() => {
  const COLOURS = 8;
  const PAGE = 20;

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const dot = (run) => {
    const node = element("i", "dot");
    node.style.setProperty("--c", `var(--c${run % COLOURS})`);
    return node;
  };

  // ---- charts: a pressed run stays, the others fade
  const buttons = [...document.querySelectorAll(".legend button")];
  const lines = [...document.querySelectorAll('.chart g[class^="run-"]')];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const press = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", String(press && other === button));
      for (const line of lines) {
        line.classList.toggle("faded", press && !line.classList.contains(`run-${button.dataset.run}`));
      }
    });
  }

  // ---- a link to something that is folded away unfolds it
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  // ---- pairs
  const source = document.getElementById("pair-data");
  if (!source) return;
  const { names, rows } = JSON.parse(source.textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("pair-list");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  for (const row of rows) {
    const prompt = row.prompt.map((message) => message.content).join("\n");
    row.haystack = `${prompt}\n${row.first}\n${row.second}`.toLowerCase();
  }

  const fill = (name, values, words = (value) => value) => {
    const select = form.elements[name];
    if (!select) return;
    select.append(new Option("all", ""));
    for (const value of values) select.append(new Option(words(value), value));
  };
  const distinct = (key) => [...new Set(rows.map((row) => row[key]))].sort();
  fill("run", [...new Set(rows.map((row) => row.run))], (run) => names[run]);
  fill("route", distinct("route"));
  fill("source", distinct("source"));
  const steps = rows.map((row) => row.step).filter((step) => step !== null);
  form.elements.from.placeholder = Math.min(...steps);
  form.elements.to.placeholder = Math.max(...steps);

  const unsureness = (row) => (row.probability === null ? 1 : Math.abs(row.probability - 0.5));
  const known = (row) => (row.disagreement === null ? -1 : row.disagreement);
  // name: [words, comparison]
  const orders = {
    early: ["earliest", (a, b) => a.step - b.step],
    late: ["latest", (a, b) => b.step - a.step],
    unsure: ["least sure", (a, b) => unsureness(a) - unsureness(b)],
    disagree: ["disagreement", (a, b) => known(b) - known(a)],
  };
  if (!rows.some((row) => row.disagreement !== null)) delete orders.disagree;
  form.elements.order.append(...Object.entries(orders).map(([name, [words]]) => new Option(words, name)));
  const aside = (row) => (row.probability - 0.5) * (row.policy_probability - 0.5);
  // name: [words, which rows]
  const kinds = {
    "": ["all", () => true],
    disagree: ["disagreeing", (row) => row.disagreement !== null && aside(row) < 0],
    agree: ["agreeing", (row) => row.disagreement !== null && aside(row) > 0],
    abstained: ["no label", (row) => row.label === null],
    identical: ["identical", (row) => row.first === row.second && !row.authors.includes("dataset")],
    cut: ["cut", (row) => row.cut.includes(true)],
    empty: ["empty", (row) => !row.first.trim() || !row.second.trim()],
    reference: ["with reference", (row) => row.reference !== null],
  };
  for (const [name, [words, which]] of Object.entries(kinds)) {
    if (rows.some(which)) form.elements.show.append(new Option(words, name));
    else delete kinds[name];
  }

  const matching = () => {
    const want = Object.fromEntries(new FormData(form));
    const text = want.text.trim().toLowerCase();
    return rows
      .filter((row) =>
        (!want.run || row.run === Number(want.run)) &&
        (!want.route || row.route === want.route) &&
        (!want.source || row.source === want.source) &&
        (want.from === "" || row.step >= Number(want.from)) &&
        (want.to === "" || row.step <= Number(want.to)) &&
        kinds[want.show][1](row) &&
        (!text || row.haystack.includes(text)))
      .sort(orders[want.order][1]);
  };

  const promptBlock = (messages) => {
    const block = element("div", "prompt");
    block.dir = "auto";
    for (const { role, content } of messages) {
      if (role) block.append(element("span", "role", role));
      block.append(element("p", "", content));
    }
    return block;
  };

  const response = (row, index) => {
    const [name, text] = index === 0 ? ["first", row.first] : ["second", row.second];
    const share = row.label === null ? null : index === 0 ? row.label : 1 - row.label;
    const block = element("div", share !== null && share > 0.5 ? "answer preferred" : "answer");
    const head = element("h4");
    const author = row.authors.includes("dataset") ? `${name} · the ${row.authors[index]}'s` : name;
    head.append(element("span", "", share !== null && share > 0.5 ? `${author} · preferred` : author));
    const length = row.lengths[index];
    const facts = [];
    if (length !== null) facts.push(length === 1 ? "1 token" : `${length} tokens`);
    if (row.cut[index]) facts.push("cut");
    head.append(element("span", "fact", facts.join(", ")));
    const body = element("p", "text", text);
    body.dir = "auto";
    block.append(head, body);
    return block;
  };

  const reference = (row) => {
    const block = element("div", "answer reference");
    const body = element("p", "text", row.reference);
    body.dir = "auto";
    block.append(element("h4", "", "the reference's answer"), body);
    return block;
  };

  const verdict = (row) => {
    const block = element("div", "verdict");
    const by = row.source || "unknown";
    if (row.probability === null) {
      const why = row.reason ? `abstained: ${row.reason}` : row.label === null ? "no label" : `label ${round(row.label)}`;
      block.append(element("span", "", `${by} · ${why}`));
      return block;
    }
    const bar = element("div", "bar");
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", `first wins with probability ${round(row.probability)}`);
    const part = element("span");
    part.style.width = `${100 * Math.min(1, Math.max(0, row.probability))}%`;
    bar.append(part);
    if (row.disagreement !== null) {
      const tick = element("i");
      tick.style.left = `${100 * row.policy_probability}%`;
      bar.append(tick);
    }
    const label = row.label === null ? "no label" : row.label === row.probability ? "" : `trained as ${round(row.label)}`;
    const policy = row.disagreement === null ? "" : `the policy said ${round(row.policy_probability)}: ${round(row.disagreement)} apart`;
    const said = [by, `first wins with ${round(row.probability)}`, label, policy, row.reason].filter(Boolean);
    block.append(bar, element("span", "", said.join(" · ")));
    return block;
  };
  const round = (value) => (value > 0 && value < 0.005) || (value < 1 && value > 0.995) ? value.toPrecision(3) : value.toFixed(2);

  const card = (row) => {
    const node = element("article", "pair");
    const head = element("div", "head");
    if (names.length > 1) {
      const run = element("span", "run-name");
      run.append(dot(row.run), names[row.run]);
      head.append(run);
    }
    head.append(element("span", "", row.step === null ? "step unknown" : `step ${row.step}`), element("span", "tag", row.route));
    const both = element("div", "answers");
    both.append(response(row, 0), response(row, 1));
    if (row.reference !== null) both.append(reference(row));
    node.tabIndex = 0;
    node.append(head, promptBlock(row.prompt), both, verdict(row));
    return node;
  };

  let found = [];
  let shown = 0;
  const showMore = () => {
    list.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown === found.length;
    count.textContent = found.length
      ? `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} pairs match; ${shown} shown. j and k go from pair to pair.`
      : "No pair matches. Widen the filters.";
  };
  const update = () => {
    found = matching();
    shown = 0;
    list.replaceChildren();
    showMore();
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  more.addEventListener("click", () => {
    const next = shown;
    showMore();
    list.children[next].focus({ preventScroll: true }); // or the keyboard would start anew at the top
  });
  list.addEventListener("keydown", (event) => {
    const step = { j: "nextElementSibling", k: "previousElementSibling" }[event.key];
    const here = event.target.closest(".pair");
    if (!step || !here || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.key === "j" && !here.nextElementSibling && !more.hidden) showMore();
    here[step]?.focus();
  });
  // A health check's evidence: the pairs that it counted.
  for (const link of document.querySelectorAll("a[data-show]")) {
    link.addEventListener("click", () => {
      form.reset();
      if (link.dataset.show in kinds) form.elements.show.value = link.dataset.show;
      update();
    });
  }
  form.hidden = false;
  update();
})();
