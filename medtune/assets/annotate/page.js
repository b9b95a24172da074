"use strict";
// The page keeps a choice that was not confirmed, and sends it again: the server takes the same choice twice as one.

const at = (id) => document.getElementById(id);
const store = window.sessionStorage; // of this tab, so that two people can work in two tabs
const TOO_SOON = 300; // ms: a double click or a held key must not answer the next question
const CHOICES = { 1: "left", 2: "right", 3: "both", 4: "neither" };

let token = store.getItem("token") || "";
let item = null;
let shownAt = 0;
let busy = false;

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function fetched(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  const request = { headers, cache: "no-store", credentials: "omit" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    request.method = "POST";
    request.body = JSON.stringify(body);
  }
  const reply = await fetch(path, request);
  if (!reply.ok) {
    const told = (await reply.json().catch(() => ({}))).error || {};
    throw new Refused(reply.status, told.code || "", told.message || `the server answered with status ${reply.status}`);
  }
  return reply;
}

// What is said to the person.

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function setBusy(value) {
  busy = value;
  for (const button of document.querySelectorAll("[data-choice], #undo, #later")) {
    button.disabled = value;
  }
}

function signIn(message) {
  at("work").hidden = at("done").hidden = at("tools").hidden = true;
  at("sign-in").hidden = false;
  notice(message);
  at("token").value = "";
  at("token").focus();
}

const pause = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));

/** Send until the server has answered; what the network loses is sent again. */
async function answered(path, body) {
  for (let wait = 0.5; ; wait = Math.min(2 * wait, 10)) {
    try {
      const state = await (await fetched(path, body)).json();
      notice("");
      return state;
    } catch (error) {
      if (error instanceof Refused && error.status !== 503 && error.status !== 429) {
        throw error;
      }
      notice(error instanceof Refused
        ? `${sentence(error.message)} It is tried again.`
        : "The connection is lost. Your choice is kept in this window and sent as soon as the server answers.");
      await pause(wait);
    }
  }
}

/** Carry out one step; `path` changes something if there is a body. */
async function step(path, body) {
  if (busy) {
    return;
  }
  setBusy(true);
  if (path === "api/choose") {
    store.setItem("pending", JSON.stringify(body));
  }
  try {
    const state = await answered(path, body);
    if (body !== undefined) {
      store.removeItem("pending");
    }
    if (path !== "api/state" && body && body.number !== undefined) {
      store.removeItem(`comment-${body.number}`);
    }
    show(state);
  } catch (error) {
    if (error.status === 401) {
      signIn(token ? sentence(error.message) : "");
    } else {
      store.removeItem("pending");
      if (path !== "api/state" && error.code !== "nothing_to_undo") {
        show(await answered("api/state").catch(() => ({ item: null, done: 0, total: 0, annotator: store.getItem("who") })));
      }
      notice(sentence(error.message || "this step failed; load the page again"));
    }
  } finally {
    setBusy(false);
  }
}

async function begin() {
  at("sign-in").hidden = true;
  await step("api/state");
  const pending = store.getItem("pending");
  if (pending && at("who").textContent === store.getItem("who")) {
    await step("api/choose", JSON.parse(pending));
  }
}

/** Forget drafts and an unsent choice of somebody else. */
function belongTo(annotator) {
  const before = store.getItem("who");
  if (before !== null && before !== annotator) {
    store.clear();
    store.setItem("token", token);
  }
  store.setItem("who", annotator);
}

function choose(choice) {
  if (item && performance.now() - shownAt > TOO_SOON) {
    const seconds = Math.round((performance.now() - shownAt) / 100) / 10;
    step("api/choose", { number: item.number, choice, comment: at("comment").value, seconds });
  }
}

function show(state) {
  item = state.item;
  belongTo(state.annotator);
  at("sign-in").hidden = true;
  at("tools").hidden = false;
  at("who").textContent = state.annotator;
  at("bar").max = Math.max(state.total, 1);
  at("bar").value = state.done;
  at("count").textContent = `${state.done} of ${state.total} done`;
  at("work").hidden = !item;
  at("done").hidden = Boolean(item);
  if (!item) {
    at("status").textContent = "All your questions are done.";
    at("thanks").focus();
    return;
  }
  shownAt = performance.now();
  at("name").textContent = `Question ${item.id}`;
  at("question").textContent = item.question;
  at("left-text").textContent = item.answers[0];
  at("right-text").textContent = item.answers[1];
  at("caption").textContent = item.caption || "This image has no caption.";
  at("mentions").hidden = !item.mentions.length;
  at("sentences").replaceChildren(...item.mentions.map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }));
  const undone = state.undone;
  at("comment").value = undone ? undone.comment : store.getItem(`comment-${item.number}`) || "";
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.toggleAttribute("data-was", Boolean(undone) && undone.choice === button.dataset.choice);
  }
  at("status").textContent = undone
    ? `Undone: ${undone.choice}. Choose again.`
    : `${state.done} of ${state.total} done. Next question.`;
  at("figure").hidden = item.images === 0;
  showTabs();
  at("question").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

// The image.

const canvas = at("view");
let source = null; // the decoded image
let drawn = null; // the same after the window
let view = { scale: 1, x: 0, y: 0 };
let asked = 0;

function showTabs() {
  const tabs = Array.from({ length: item.images }, (_, number) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = `Image ${number + 1}`;
    tab.addEventListener("click", () => showImage(number));
    return tab;
  });
  at("tabs").replaceChildren(...tabs);
  at("tabs").hidden = tabs.length < 2;
  if (tabs.length) {
    showImage(0);
  }
}

async function showImage(number) {
  const mine = ++asked;
  [...at("tabs").children].forEach((tab, place) => tab.setAttribute("aria-pressed", String(place === number)));
  source = drawn = null;
  at("viewer").hidden = at("gone").hidden = true;
  canvas.setAttribute("aria-label", `Image ${number + 1} of ${item.images} of the question, loading`);
  draw();
  const shown = item.number;
  let problem = "";
  try {
    for (let left = 3; !source; left--) {
      try {
        const reply = await fetched(`api/items/${shown}/images/${number}`);
        const bitmap = await createImageBitmap(await reply.blob());
        if (mine !== asked) {
          return;
        }
        source = pixels(bitmap);
      } catch (error) {
        if (error instanceof Refused || !left) {
          throw error;
        }
        await pause(1);
      }
    }
  } catch (error) {
    problem = error instanceof Refused ? error.message : "the image did not arrive; load the page again";
  }
  if (mine !== asked) {
    return;
  }
  if (problem) {
    at("gone").textContent = `${sentence(problem)} Choose Later to go on with the next question.`;
    at("gone").hidden = false;
    at("status").textContent = sentence(problem);
    return;
  }
  canvas.setAttribute("aria-label",
    `Image ${number + 1} of ${item.images} of the question, ${source.width} by ${source.height} pixels. ` +
    "Plus and minus zoom, arrows move it.");
  at("viewer").hidden = false;
  at("window").hidden = !isGrey(source);
  resetWindow();
  fit();
}

function pixels(bitmap) {
  const kept = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = kept.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function isGrey(image) {
  const data = image.data;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) {
      return false;
    }
  }
  return true;
}

function resetWindow() {
  at("level").value = 128;
  at("width").value = 255;
  applyWindow();
}

/** Map grey values from (level - width/2, level + width/2) to 0..255. */
function applyWindow() {
  const level = Number(at("level").value), width = Number(at("width").value);
  const kept = new OffscreenCanvas(source.width, source.height);
  let image = source;
  if (!at("window").hidden && (width < 255 || level !== 128)) {
    const table = Uint8ClampedArray.from({ length: 256 }, (_, v) => (255 * (v - level + width / 2)) / width);
    image = new ImageData(new Uint8ClampedArray(source.data), source.width, source.height);
    for (let i = 0; i < image.data.length; i += 4) {
      image.data[i] = image.data[i + 1] = image.data[i + 2] = table[image.data[i]];
    }
  }
  kept.getContext("2d").putImageData(image, 0, 0);
  drawn = kept;
  draw();
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const context = canvas.getContext("2d");
  canvas.dataset.scale = drawn ? view.scale.toFixed(4) : "";
  canvas.dataset.offset = drawn ? `${view.x.toFixed(1)} ${view.y.toFixed(1)}` : "";
  if (drawn) {
    context.imageSmoothingEnabled = view.scale * ratio < 4; // single pixels are shown as such
    context.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.x * ratio, view.y * ratio);
    context.drawImage(drawn, 0, 0);
  }
}

function smallest() {
  return Math.min(canvas.clientWidth / source.width, canvas.clientHeight / source.height);
}

function fit() {
  if (!source) {
    return;
  }
  const scale = smallest();
  view = { scale, x: (canvas.clientWidth - scale * source.width) / 2, y: (canvas.clientHeight - scale * source.height) / 2 };
  draw();
}

function move(x, y) {
  if (!source) {
    return;
  }
  // A part of the image always stays in sight.
  const keep = 40;
  view.x = Math.min(canvas.clientWidth - keep, Math.max(keep - view.scale * source.width, view.x + x));
  view.y = Math.min(canvas.clientHeight - keep, Math.max(keep - view.scale * source.height, view.y + y));
  draw();
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  if (!source) {
    return;
  }
  const scale = Math.min(Math.max(view.scale * factor, smallest() / 2), Math.max(32, smallest()));
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  move(0, 0);
}

const fingers = new Map();
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) {
    return;
  }
  const now = { x: event.offsetX, y: event.offsetY };
  const other = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place)[0];
  if (other) {
    const gap = (one) => Math.max(Math.hypot(one.x - other.x, one.y - other.y), 1);
    zoom(gap(now) / gap(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
  } else {
    move(now.x - before.x, now.y - before.y);
  }
  fingers.set(event.pointerId, now);
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
}
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("dblclick", fit);
new ResizeObserver(fit).observe(at("frame"));

// Buttons and keys.

at("closer").addEventListener("click", () => zoom(1.4));
at("farther").addEventListener("click", () => zoom(1 / 1.4));
at("whole").addEventListener("click", fit);
at("full").addEventListener("click", resetWindow);
at("level").addEventListener("input", applyWindow);
at("width").addEventListener("input", applyWindow);
at("undo").addEventListener("click", () => step("api/undo", {}));
at("later").addEventListener("click", later);
at("comment").addEventListener("input", () => store.setItem(`comment-${item.number}`, at("comment").value));
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}

function later() {
  if (item && performance.now() - shownAt > TOO_SOON) {
    const comment = at("comment").value;
    const number = item.number;
    step("api/later", { number }).then(() => comment && store.setItem(`comment-${number}`, comment));
  }
}

const ARROWS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
const KEYS = {
  u: () => step("api/undo", {}),
  l: later,
  c: () => at("comment").focus(),
  i: () => canvas.focus(),
  "+": () => zoom(1.4),
  "=": () => zoom(1.4),
  "-": () => zoom(1 / 1.4),
  0: fit,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("sign-in").hidden === false) {
    return;
  }
  if (event.key === "Escape") {
    at("help").open = false;
    document.activeElement.blur();
    at("question").focus({ preventScroll: true });
    return;
  }
  if (event.target.matches("textarea") || !at("keys").checked) {
    return;
  }
  const pan = document.activeElement === canvas && ARROWS[event.key];
  if (pan) {
    event.preventDefault();
    move(...pan);
  } else if (CHOICES[event.key] && !event.repeat) {
    event.preventDefault();
    choose(CHOICES[event.key]);
  } else if (KEYS[event.key.toLowerCase()] && (!event.repeat || "+=-".includes(event.key))) {
    event.preventDefault();
    KEYS[event.key.toLowerCase()]();
  }
});

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  store.setItem("token", token);
  begin();
});

function takeTokenOfLink() {
  const given = new URLSearchParams(window.location.hash.slice(1)).get("token");
  if (given) {
    token = given;
    store.setItem("token", token);
    history.replaceState(null, "", window.location.pathname); // neither in the address bar nor in the history
  }
}

window.addEventListener("hashchange", () => { takeTokenOfLink(); begin(); });
takeTokenOfLink();
if (token) {
  begin();
} else {
  signIn("");
}
