/* The connection to the sandbox: the stream of server-sent events, details, controls.

   `EventSource` cannot send a token, so the stream is read with `fetch`. */
import { app } from './store.js';
import { toast } from './text.js';

const WAITS = [1, 2, 4, 8, 15, 30]; // seconds before a new try

const PATIENCE = 10000; // ms for an answer
const SILENCE = 40000; // ms; the sandbox says every 15 s that it is still there

/** The token of an exposed sandbox comes in the address, once, and does not stay there. */
function takeToken() {
  const given = /[#&]token=([\w-]+)/.exec(location.hash);
  if (!given) return false;
  token = given[1];
  sessionStorage.setItem('token', token);
  history.replaceState(null, '', location.pathname + location.search);
  return true;
}

let token = sessionStorage.getItem('token');
takeToken();
const headers = (more) => (token ? { ...more, Authorization: `Bearer ${token}` } : more);

/** Returns the body and the headers of a request, or null if the sandbox no longer has it. */
export async function detail(n) {
  const answer = await fetch(`/_live/requests/${n}`, {
    headers: headers({}),
    signal: AbortSignal.timeout(PATIENCE),
  });
  return answer.ok ? answer.json() : null;
}

/** Asks for a change, and tells the reader if it was refused. Its effect comes over the stream. */
export async function control(name, asked) {
  let answer;
  try {
    answer = await fetch(`/_live/${name}`, {
      method: 'POST',
      headers: headers({ 'Content-Type': 'application/json' }),
      body: JSON.stringify(asked),
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch (error) {
    const late = 'No answer yet: perhaps too many tabs show this page';
    toast(error.name === 'TimeoutError' ? late : 'Not connected: nothing was changed');
    return false;
  }
  const said = await answer.json();
  if (answer.ok) app.settings(said);
  else toast(`Nothing was changed: ${said.message}`);
  return answer.ok;
}

/** Reads the stream, again and again: `on` has `message(kind, data)`, `state(name)` and `waiting(seconds)`. */
export function connect(on) {
  let last = '';
  let tries = 0;
  let wake = null;
  let stop = new AbortController();
  let watchdog = 0;

  function watch() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => stop.abort(), SILENCE);
  }

  async function read() {
    stop = new AbortController();
    watch();
    const more = last ? { 'Last-Event-ID': last } : {};
    const answer = await fetch('/_live/events', { headers: headers(more), signal: stop.signal });
    if (answer.status === 401) return 'token';
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return 'ended';
      watch();
      rest += value;
      for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
        take(rest.slice(0, end));
        rest = rest.slice(end + 2);
      }
    }
  }

  function take(message) {
    let kind = '';
    let data = '';
    for (const line of message.split('\n')) {
      if (line.startsWith('event: ')) kind = line.slice(7);
      else if (line.startsWith('id: ')) last = line.slice(4);
      else if (line.startsWith('data: ')) data = line.slice(6);
    }
    if (!kind) return;
    tries = 0;
    on.message(kind, JSON.parse(data));
  }

  async function pause() {
    for (let left = WAITS[Math.min(tries++, WAITS.length - 1)]; left > 0; left--) {
      on.waiting(left);
      const hurried = await new Promise((go) => {
        wake = () => go(true);
        setTimeout(() => go(false), 1000);
      });
      if (hurried) return;
    }
    on.waiting(0);
  }

  (async () => {
    for (;;) {
      const ended = await read().catch(() => 'lost');
      clearTimeout(watchdog);
      if (document.hidden) {
        // A browser has few connections to a place: a tab that is not seen leaves its own to others.
        await new Promise((go) => document.addEventListener('visibilitychange', go, { once: true }));
        continue;
      }
      on.state(ended === 'token' ? 'token' : 'lost');
      await pause();
    }
  })();
  const retry = () => wake && wake();
  document.addEventListener('visibilitychange', () => (document.hidden ? stop.abort() : retry()));
  window.addEventListener('hashchange', () => {
    if (takeToken()) retry();
  });
  return { retry };
}
