/* The live page: puts its parts together. Views, filters, frames, wiring, the connection. */
import { $, clock, copy, count, h, icon, many, narrow, setText, short, tell, toast } from './text.js';
import {
  app,
  boundInbox,
  filter,
  filtered,
  forgetAll,
  forgetOld,
  keep,
  matches,
  sessionMatches,
  setSearch,
  state,
  store,
} from './store.js';
import { VirtualList } from './list.js';
import { KINDS } from './rows.js';
import { findings } from './findings.js';
import { open, showLatency, showRequest } from './request.js';
import { isStale, showSession } from './session.js';
import { closeDesk, markDock, openDesk, showPicked, showSettings, wireControls } from './controls.js';
import { connect } from './stream.js';
import { blank as showBlank } from './blank.js';
import { counters, spark } from './counters.js';
import './keyboard.js';
import './theme.js';

const PER_FRAME = 400;
const SLICE = 8; // ms of a search before the page is drawn again
const SPOKEN = 15000; // ms between two sentences for screen readers

const BUSY = 10; // requests since the last frame
const BUSY_EVERY = 200; // ms

let frame = 0;
let waiting = 0;
let lastTaken = 0;
let opener = null;
const stale = { counters: true, sessions: false };

// Frames: what has come since the last one is taken in, then the list is drawn once.

function schedule() {
  if (!frame) frame = requestAnimationFrame(draw);
}

/** What has come is drawn at once while it is little, and a few times a second while it is too much to be read. */
function scheduleInbox() {
  const wait = store.inbox.length > BUSY ? lastTaken + BUSY_EVERY - performance.now() : 0;
  if (wait <= 0) schedule();
  else if (!waiting) {
    waiting = setTimeout(() => {
      waiting = 0;
      schedule();
    }, wait);
  }
}

function draw() {
  frame = 0;
  if (store.inbox.length) {
    lastTaken = performance.now();
    const hits = [];
    for (const r of store.inbox.splice(0, PER_FRAME)) {
      keep(r);
      if (state.view === 'requests' && (!filtered() || matches(r))) hits.push(r);
    }
    forgetOld();
    if (hits.length) list.push(hits);
    if (state.view === 'requests') list.trim();
    stale.counters = stale.sessions = true;
  }
  list.draw();
  if (store.inbox.length) schedule();
}

const list = new VirtualList($('list'), $('spacer'), KINDS.requests, schedule);

// Filters.

let searching = 0;

/** Calls `done` with what fits, in slices, so that typing never waits. */
function sift(source, fits, done) {
  const run = ++searching;
  const out = [];
  let i = 0;
  (function slice() {
    if (run !== searching) return;
    const until = performance.now() + SLICE;
    while (i < source.length) {
      if (fits(source[i])) out.push(source[i]);
      if ((++i & 15) === 0 && performance.now() > until) break;
    }
    if (i < source.length) setTimeout(slice, 0);
    else done(out);
  })();
}

function rebuild() {
  notes();
  if (state.view === 'sessions') {
    sift([...store.sessions.values()], sessionMatches, (out) => shown(out));
    return;
  }
  if (!filtered()) {
    searching++;
    shown(store.all.slice());
    return;
  }
  const source = store.all.slice();
  const newest = source.length ? source[source.length - 1] : null;
  sift(source, matches, (out) => {
    const late = store.all.slice(store.all.lastIndexOf(newest) + 1).filter(matches); // came while it searched
    shown(out.concat(late));
  });
}

function shown(items) {
  list.set(items);
  notes();
  blank();
  fresh();
}

function notes() {
  const el = $('notes');
  el.replaceChildren();
  el.hidden = !filtered();
  for (const name of ['status', 'verdict', 'type'])
    $('f-' + name).classList.toggle('set', Boolean(filter[name]));
  for (const button of document.querySelectorAll('.stat[data-verdict]')) {
    button.setAttribute('aria-pressed', button.dataset.verdict === filter.verdict);
  }
  if (!filtered()) return;
  el.append(h('span', { id: 'shown' }, ''));
  if (filter.session) {
    const drop = () => {
      filter.session = '';
      rebuild();
    };
    const chip = { type: 'button', class: 'chip', title: 'Remove this filter', on: { click: drop } };
    el.append(h('button', chip, `session ${short(filter.session)}`, icon('bad')));
  }
  el.append(h('button', { type: 'button', class: 'link', on: { click: clearFilters } }, 'Clear filters'));
}

function clearFilters() {
  for (const name of Object.keys(filter)) filter[name] = '';
  $('q').value = '';
  setSearch('');
  for (const name of ['status', 'verdict', 'type']) $('f-' + name).value = '';
  rebuild();
}

function blank() {
  showBlank(!list.items.length && !list.held.length);
}

// Counters: four times a second, so that figures stay readable.

function fresh() {
  const held = state.view === 'requests' ? list.held.length : 0;
  const el = $('fresh');
  el.hidden = !held;
  const text = state.paused ? `${count(held)} while paused` : many(held, 'new request');
  if (held && el.dataset.text !== text) {
    el.dataset.text = text;
    el.replaceChildren(icon('up'), text);
  }
  const all = store.all.length;
  const missed = state.missed ? `, ${count(state.missed)} came too fast to be shown` : '';
  const kept = `${many(all, 'request')} kept${state.totals.requests > all ? ` of ${count(state.totals.requests)}` : ''}, newest first${missed}`;
  const some = `${count(list.items.length)} of ${many(all, 'request')}`;
  setText($('foot-count'), filtered() && state.view === 'requests' ? `${some} shown` : kept);
  if ($('shown')) setText($('shown'), state.view === 'requests' ? some : many(list.items.length, 'session'));
}

setInterval(() => {
  if (stale.counters) {
    stale.counters = false;
    counters();
  }
  fresh();
  blank();
}, 250);

const spoken = { at: 0, requests: 0, refused: 0 };

setInterval(() => {
  if (state.conn !== 'live') spark();
  if (state.view === 'sessions' && stale.sessions) {
    stale.sessions = false;
    if (list.follows()) {
      sift([...store.sessions.values()], sessionMatches, (out) => {
        list.items = out;
        list.touch();
        blank();
      });
    }
    const ses = store.sessions.get(state.chosenSession);
    if (ses && isStale(ses) && !state.paused && !$('detail').hidden) showSession(ses);
  }
  const { requests, refused } = state.totals;
  if (Date.now() - spoken.at > SPOKEN && requests > spoken.requests && !state.paused) {
    if (spoken.at)
      tell(
        `${many(requests - spoken.requests, 'request')} more, ${many(refused - spoken.refused, 'event')} refused`,
      );
    Object.assign(spoken, { at: Date.now(), requests, refused });
  }
}, 1000);

// Views.

function closeDetail() {
  $('detail').hidden = true;
  $('work').classList.remove('has-detail');
  list.measure();
  const back = opener && opener.isConnected && opener !== document.body ? opener : $('list');
  back.focus({ preventScroll: true });
  if (state.view === 'sessions' && narrow()) state.chosenSession = '';
}

function go(name) {
  closeDesk();
  markDock(name);
  if (state.view === name) {
    rebuild();
    return;
  }
  state.view = name;
  for (const id of ['requests', 'sessions']) {
    $('tab-' + id).setAttribute('aria-selected', id === name);
    $('tab-' + id).tabIndex = id === name ? 0 : -1;
  }
  $('pane').setAttribute('aria-labelledby', 'tab-' + name);
  $('list').setAttribute(
    'aria-label',
    name === 'requests' ? 'Requests, newest first' : 'Sessions, latest first',
  );
  $('work').classList.remove('has-detail');
  $('work').classList.toggle('is-sessions', name === 'sessions');
  $('detail').hidden = true;
  $('f-status').parentNode.hidden = $('f-type').parentNode.hidden = name === 'sessions';
  list.become(KINDS[name]);
  list.items = [];
  list.held = [];
  heads();
  list.measure();
  rebuild();
  if (name === 'sessions' && !narrow()) showOne();
}

/** The session that was chosen; else the latest with something to see, else the latest. */
function showOne() {
  const latest = [...store.sessions.values()].slice(-60).reverse();
  const best =
    store.sessions.get(state.chosenSession) ||
    latest.find((x) => x.twice && findings(x).events.length > 5) ||
    latest[0];
  if (!best) return;
  state.chosenSession = best.id;
  showSession(best);
}

function goSession(id) {
  const ses = store.sessions.get(id);
  state.chosenSession = id;
  go('sessions');
  if (!ses) return;
  showSession(ses);
  list.touch();
}

function heads() {
  const names = ['Answer', 'Time', 'What happened', 'Accepted', 'Session'].map((text) => h('span', {}, text));
  const numbers = [h('span', { class: 'num lat' }, 'Latency'), h('span', { class: 'num id' }, 'No.')];
  $('heads').replaceChildren(...(state.view === 'requests' ? [...names, ...numbers] : []));
}

function move(step) {
  const isRequests = state.view === 'requests';
  const chosen = isRequests ? store.byNumber.get(state.chosen) : store.sessions.get(state.chosenSession);
  const at = chosen ? list.indexOf(chosen) : -1;
  const i = Math.min(list.items.length - 1, Math.max(0, at + step));
  const item = list.at(i);
  if (!item) return;
  list.reveal(i);
  if (isRequests) {
    state.chosen = item.n;
    if (!$('detail').hidden) showRequest(item);
  } else {
    state.chosenSession = item.id;
    if (!narrow()) showSession(item);
  }
  list.touch();
}

function setPaused(on) {
  state.paused = on;
  $('pause').setAttribute('aria-pressed', on);
  $('pause-icon').setAttribute('href', on ? '#i-play' : '#i-pause');
  $('pause-text').textContent = on ? 'Resume' : 'Pause';
  if (!on) {
    list.release();
    stale.sessions = true;
  }
  setConn(state.conn);
  fresh();
  tell(on ? 'Paused. Requests are still recorded.' : 'Resumed');
}

Object.assign(app, {
  clearFilters,
  closeDetail,
  go,
  goSession,
  move,
  rebuild,
  setPaused,
  measure: () => list.measure(),
  touch: () => list.touch(),
  settings(settings) {
    // A control's answer and the stream overtake each other: the later of the sandbox's states counts.
    if (state.settings && settings.version < state.settings.version) return;
    state.settings = settings;
    if (state.hello) showSettings();
  },
  remember() {
    if ($('detail').hidden) opener = document.activeElement;
  },
});

// Wiring.

const on = (id, type, act) => $(id).addEventListener(type, act);
wireControls();

on('endpoint', 'click', () => state.hello && copy(state.hello.endpoint, 'Endpoint'));
on('tab-requests', 'click', () => go('requests'));
on('tab-sessions', 'click', () => go('sessions'));
document.querySelector('.tabs').addEventListener('keydown', (e) => {
  if (e.key !== 'ArrowLeft' && e.key !== 'ArrowRight') return;
  go(state.view === 'requests' ? 'sessions' : 'requests');
  $('tab-' + state.view).focus();
});
for (const button of document.querySelectorAll('[data-dock]')) {
  button.addEventListener('click', () => {
    if (button.dataset.dock !== 'desk') {
      go(button.dataset.dock);
      return;
    }
    $('detail').hidden = true;
    openDesk();
  });
}
for (const button of document.querySelectorAll('.stat[data-verdict]')) {
  button.addEventListener('click', () => {
    filter.verdict = filter.verdict === button.dataset.verdict ? '' : button.dataset.verdict;
    $('f-verdict').value = filter.verdict;
    rebuild();
  });
}
document.querySelector('.stat[data-view]').addEventListener('click', () => go('sessions'));

let typing = 0;
on('q', 'input', () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    setSearch($('q').value.trim());
    rebuild();
  }, 120);
});
for (const name of ['status', 'verdict', 'type']) {
  on('f-' + name, 'change', () => {
    filter[name] = $('f-' + name).value;
    rebuild();
  });
}
on('filters-open', 'click', () => {
  const isOpen = $('filters').classList.toggle('open');
  $('filters-open').setAttribute('aria-expanded', isOpen);
});
on('pause', 'click', () => setPaused(!state.paused));
on('fresh', 'click', () => {
  if (state.paused) setPaused(false);
  else list.release();
  fresh();
  $('list').focus({ preventScroll: true });
});
on('list', 'click', (e) => {
  const row = e.target.closest('.row');
  if (!row || !row.item) return;
  if (state.view === 'requests') {
    open(row.item.n);
    return;
  }
  state.chosenSession = row.item.id;
  opener = $('list');
  showSession(row.item);
  list.touch();
});
on('list', 'scroll', () => {
  if (list.held.length && !state.paused && list.box.scrollTop < 4) {
    list.release();
    fresh();
  }
});
const JUMPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
on('list', 'keydown', (e) => {
  if (Object.hasOwn(JUMPS, e.key)) {
    e.preventDefault();
    move(JUMPS[e.key]);
  } else if (e.key === 'Enter') {
    e.preventDefault();
    if (state.view === 'requests') {
      open(state.chosen, true);
      return;
    }
    const ses = store.sessions.get(state.chosenSession);
    if (!ses) return;
    opener = $('list');
    showSession(ses);
    $('detail').querySelector('button').focus();
  }
});

// The connection.

const LOCKED = 'This sandbox asks for its token: open the address that it has printed.';
let lostAt = '';

function setConn(name) {
  if (state.conn !== name && name === 'live' && state.conn === 'lost') tell('Connected again');
  state.conn = name;
  const shownAs = name === 'live' && state.paused ? 'paused' : name === 'token' ? 'lost' : name;
  $('conn').dataset.state = shownAs;
  setText(
    $('conn-text'),
    { live: 'Live', paused: 'Paused', connecting: 'Connecting', lost: 'Disconnected' }[shownAs],
  );
  document.title =
    { live: '', paused: '⏸ ', connecting: '… ', lost: '⚠ ' }[shownAs] + 'Server Events sandbox';
  $('banner').hidden = name !== 'lost' && name !== 'token';
  if (!$('banner').hidden)
    setText($('banner-text'), name === 'token' ? LOCKED : `No connection to the sandbox${lostAt}.`);
}

const MESSAGES = {
  hello(data) {
    if (!data.goesOn) {
      forgetAll();
      $('detail').hidden = true;
      $('work').classList.remove('has-detail');
    }
    state.hello = data;
    state.settings = null;
    state.totals = data.totals;
    if (!data.goesOn) state.trimmed = data.isTrimmed;
    app.settings(data.settings);
    setText($('endpoint-url'), data.endpoint);
    showPicked();
    setConn('live');
    stale.counters = true;
    if (!data.goesOn) rebuild();
    blank();
  },
  requests(data) {
    for (const r of data.rows) store.inbox.push(r);
    state.missed += data.missed;
    state.totals = data.totals;
    for (const [n, latency] of data.late) late(n, latency);
    boundInbox();
    stale.counters = true;
    scheduleInbox();
  },
  recent(data) {
    spark(data.seconds);
  },
  settings: (data) => app.settings(data),
  cleared(data) {
    forgetAll();
    state.trimmed = false;
    state.totals = data.totals;
    Object.assign(spoken, { requests: 0, refused: 0 });
    $('detail').hidden = true;
    $('work').classList.remove('has-detail');
    stale.counters = true;
    rebuild();
    toast('Record cleared');
  },
};

/** A latency that was not known yet when its request was sent to the page. */
function late(n, latency) {
  const r = store.byNumber.get(n) || store.inbox.find((other) => other.n === n);
  if (!r) return;
  r.latency = latency;
  r.version = (r.version || 0) + 1;
  list.dirty = true;
  showLatency(r);
}

const link = connect({
  message: (kind, data) => Object.hasOwn(MESSAGES, kind) && MESSAGES[kind](data),
  state(name) {
    if (state.conn === 'live') lostAt = ` since ${clock(Date.now())}. What is shown may be old`;
    setConn(name);
    blank();
  },
  waiting(left) {
    setText($('banner-next'), left ? `Next try in ${left} s.` : 'Connecting…');
  },
});
on('retry', 'click', () => link.retry());
heads();
blank();
setConn('connecting');
