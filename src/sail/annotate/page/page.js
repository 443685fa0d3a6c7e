"use strict";
// Texts reach the page as text nodes only; nothing is ever read as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const AGAIN_MS = 1500, WAIT_MS = 2000, BEAT_MS = 15000;
  const KEYS = { arrowleft: "left", a: "left", arrowright: "right", b: "right", t: "tie", s: "skip" };
  const WORDS = { left: "A is better", right: "B is better", tie: "a tie", skip: "skipped" };
  let name = "", pair = null, busy = false, waiting = 0;
  let shownAt = 0, hiddenAt = 0, hidden = 0;

  const rest = (ms) => new Promise((done) => setTimeout(done, ms));
  const say = (text) => { $("said").textContent = text; };
  const alarm = (text) => { $("alarm").textContent = text; };
  const key = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

  // ---- asking the server

  async function ask(what, body) {
    // The same question is repeated until it is answered: a label carries its own key, so that it counts once.
    for (let lost = false; ; lost = true) {
      try {
        const reply = await fetch("api/" + what, {
          method: "POST", credentials: "same-origin", redirect: "error", keepalive: what === "leave",
          headers: { "Content-Type": "application/json", "X-Sail-Annotate": "1" },
          body: JSON.stringify({ name, ...body }),
        });
        const answer = await reply.json();
        if (reply.ok) { if (lost) alarm(""); return answer; }
        if (what === "label" && (reply.status === 401 || reply.status === 403)) {
          // The token is another one than this page knows: opened again, its link gives this browser the new one.
          alarm("Your last label is not saved yet: the server does not know this page any more. Keep it open, and open the link that sail printed in another tab: then the label is sent.");
          await rest(AGAIN_MS);
          continue;
        }
        alarm(answer.error || "The server refused this.");
        return null;
      } catch (error) {
        if (what === "beat" || what === "summary" || what === "leave") return null;
        alarm("The server does not answer. " + (what === "label" ? "Your last label is not saved yet. " : "") + "Keep this page open: it tries again.");
        await rest(AGAIN_MS);
      }
    }
  }

  // ---- showing

  function text(tag, content, kind) {
    const node = document.createElement(tag);
    node.textContent = content;
    if (kind) node.className = kind;
    return node;
  }

  function duration(seconds) {
    if (seconds < 60) return "less than a minute";
    const minutes = Math.round(seconds / 60);
    return minutes < 90 ? `about ${minutes} min` : `about ${Math.round(minutes / 6) / 10} h`;
  }

  function showProgress(now) {
    let line = `${now.given} of ${now.wanted} labels`;
    if (now.mine < now.given) line += `, ${now.mine} by you`;
    if (now.left_for_me && now.seconds_left !== null) line += `, ${duration(now.seconds_left)} left`;
    $("count").textContent = line;
    $("bar").max = Math.max(now.wanted, 1);
    $("bar").value = now.given;
    $("where").hidden = !now.wanted;
  }

  function showPair(next) {
    const paragraphs = next.prompt.map((message) => {
      const node = text("p", message.content);
      node.dir = "auto";
      if (message.role) node.prepend(text("span", message.role, "role"));
      return node;
    });
    $("prompt").replaceChildren(...paragraphs);
    $("left").querySelector(".text").textContent = next.left;
    $("right").querySelector(".text").textContent = next.right;
    shownAt = performance.now();
    hidden = 0;
    hiddenAt = document.hidden ? shownAt : 0;
    scrollTo(0, 0);
    $("pair").focus({ preventScroll: true });
  }

  function showMessage(state) {
    const { progress: now, training } = state;
    const [title, more] = training
      ? ["Waiting for the next pairs", "Training is at work. Keep this page open: the next pairs appear by themselves."]
      : now.given >= now.wanted
        ? ["All pairs are labelled", "Thank you. You can still undo your last label, or close this page."]
        : ["Nothing left for you", "The other pairs are with somebody else, or need another person. Keep this page open if you want to take over what is given back."];
    const section = $("message");
    section.querySelector("h2").textContent = title;
    section.querySelector("p").textContent = more;
  }

  function show(state) {
    if (!state) return;
    const before = pair && pair.id;
    pair = state.pair || null;
    $("question").textContent = state.question;
    for (const id of ["left", "right"]) $(id).classList.remove("chosen");
    showProgress(state.progress);
    $("pair").hidden = !pair;
    $("message").hidden = Boolean(pair);
    for (const button of document.querySelectorAll(".verdict")) button.setAttribute("aria-disabled", String(!pair));
    document.title = pair ? state.question : "Waiting";
    if (pair) { if (pair.id !== before) showPair(pair); }
    else {
      showMessage(state);
      if (before) $("message").focus({ preventScroll: true });
      clearTimeout(waiting);
      waiting = setTimeout(lookAgain, WAIT_MS);
    }
    if ($("more").open) showSummary();
  }

  async function showSummary() {
    const told = await ask("summary", {});
    if (!told) return;
    const row = (person) => {
      const line = document.createElement("tr"), head = text("th", person.name);
      head.scope = "row";
      line.append(head, text("td", person.labels), text("td", person.median_seconds.toFixed(1) + " s"));
      return line;
    };
    $("people").replaceChildren(...told.people.map(row));
    const found = told.agreement, number = (value) => value.toFixed(2);
    $("agreement").textContent = found.alpha === null
      ? `Agreement between people: not known yet; ${found.why}.`
      : `Agreement between people (Krippendorff's alpha): ${number(found.alpha)}`
        + (found.low === null ? "" : ` [${number(found.low)}, ${number(found.high)}]`)
        + `, over ${found.pairs} pairs that two or more labelled. 1 is perfect, 0 is chance.`;
  }

  // ---- what a person does

  async function alone(deed) {
    if (busy || !name) return;
    busy = true;
    alarm("");
    try { await deed(); } finally { busy = false; }
  }

  const label = (verdict) => alone(async () => {
    if (!pair) return;
    const now = performance.now();
    const away = hidden + (hiddenAt ? now - hiddenAt : 0);
    if (verdict === "left" || verdict === "right") $(verdict).classList.add("chosen");
    const state = await ask("label", { pair: pair.id, verdict, seconds: Math.max(0, now - shownAt - away) / 1000, key: key() });
    if (!state) { for (const id of ["left", "right"]) $(id).classList.remove("chosen"); return; }
    say({
      saved: `Saved: ${WORDS[verdict]}.`,
      late: `Saved: ${WORDS[verdict]}. Training had gone on without it.`,
      again: "You had labelled this pair already; that label stands.",
    }[state.noted] || "");
    show(state);
  });

  const undo = () => alone(async () => {
    const state = await ask("undo", {});
    if (!state) return;
    say({
      undone: "Undone. This is the pair again.",
      nothing: "There is nothing to undo.",
      used: "Too late: training has used your last label.",
    }[state.noted] || "");
    show(state);
  });

  const lookAgain = () => { if (busy) waiting = setTimeout(lookAgain, WAIT_MS); else alone(async () => show(await ask("next", {}))); };

  async function beat() {
    if (!name || !pair || document.hidden || busy) return;
    const asked = pair.id, told = await ask("beat", { pair: asked });
    if (!told || !pair || pair.id !== asked || busy) return;
    showProgress(told.progress);
    if (!told.wanted) { say("Training went on without this pair."); pair = null; lookAgain(); }
    else if ($("more").open) showSummary();
  }

  async function begin(chosen) {
    name = chosen;
    const address = new URL(location.href);
    address.searchParams.delete("token");   // the cookie knows it; an address bar is seen by others
    address.searchParams.set("name", name);
    history.replaceState(null, "", address);
    $("start").hidden = true;
    $("work").hidden = $("foot").hidden = $("about").hidden = false;
    busy = true;
    try { show(await ask("next", {})); } finally { busy = false; }
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest?.("input, textarea, select")) return;
    const pressed = event.key.toLowerCase();
    if (pressed === "u") { event.preventDefault(); undo(); }
    else if (KEYS[pressed]) { event.preventDefault(); label(KEYS[pressed]); }
  });
  document.addEventListener("visibilitychange", () => {
    const now = performance.now();
    if (document.hidden) hiddenAt = now;
    else { if (hiddenAt) hidden += now - Math.max(hiddenAt, shownAt); hiddenAt = 0; beat(); }
  });
  addEventListener("pagehide", () => { if (name) ask("leave", {}); });
  addEventListener("pageshow", (event) => { if (event.persisted) beat(); });
  for (const button of document.querySelectorAll(".verdict")) button.addEventListener("click", () => label(button.dataset.verdict));
  $("undo").addEventListener("click", undo);
  $("more").addEventListener("toggle", () => { if ($("more").open) showSummary(); });
  $("who").addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = $("name").value.trim().replace(/\s+/g, " ");
    if (chosen) begin(chosen);
  });
  setInterval(beat, BEAT_MS);

  const known = (new URL(location.href).searchParams.get("name") || "").trim().replace(/\s+/g, " ");
  if (known) begin(known);
  else { $("start").hidden = false; $("name").focus(); }
})();
