/* The live page: puts its parts together. Views, filters, frames, counters, the keyboard, the connection. */
import {
  $,
  clock,
  copy,
  count,
  h,
  icon,
  many,
  narrow,
  recall,
  remember,
  setText,
  short,
  tell,
  toast,
} from './text.js';
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
import { copyAs, open, showLatency, showRequest } from './request.js';
import { isStale, showSession } from './session.js';
import {
  closeDesk,
  closePop,
  markDock,
  openDesk,
  pickFault,
  showPicked,
  showSettings,
  wireControls,
} from './controls.js';
import { connect } from './stream.js';

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

// What is shown where there is nothing to show.

const CURL = `curl -i "$ROKT_ENDPOINT" \\
  -H "rokt-pub-id: $ROKT_PUB_ID" \\
  -H "rokt-secret: $ROKT_SECRET" \\
  -H "rokt-tag-id: $ROKT_TAG_ID" \\
  -H "Content-Type: application/json" \\
  -d '{"events": [{"eventType": "SignalViewed", "sessionId": "s-1",
       "parentGuid": "c-1", "clientUniqueId": "order-1",
       "eventTime": "'$(date -u +%FT%TZ)'"}]}'`;

function blank() {
  const el = $('blank');
  const isEmpty = !list.items.length && !list.held.length;
  const needsToken = state.conn === 'token';
  el.hidden = !isEmpty;
  const kind = !isEmpty
    ? ''
    : needsToken
      ? 'token'
      : !state.hello
        ? 'connecting'
        : filtered()
          ? 'filtered'
          : 'empty';
  if (el.dataset.kind === kind) return;
  el.dataset.kind = kind;
  if (kind) el.replaceChildren(h('div', { class: 'blank-in' }, ...BLANKS[kind]()));
}

const BLANKS = {
  connecting: () => [
    h('h2', {}, 'Connecting to the sandbox'),
    h(
      'p',
      {},
      'The page has no data yet. If this stays, the sandbox has stopped: start it again with rokt-events sandbox.',
    ),
  ],
  token: () => [
    h('h2', {}, 'This sandbox is exposed'),
    h(
      'p',
      {},
      'It listens beyond this machine, so the page needs its token. Open the address that the sandbox has printed, with all that follows the #.',
    ),
  ],
  filtered: () => [
    h('h2', {}, 'Nothing matches'),
    h('p', {}, 'None of the requests that are kept match these filters.'),
    h('button', { type: 'button', on: { click: clearFilters } }, 'Clear filters'),
  ],
  empty() {
    const env = Object.entries(state.hello.env).map(([name, value]) => `export ${name}=${value}`);
    const snip = (text, what) =>
      h(
        'div',
        { class: 'snip' },
        h('pre', { tabindex: '0', 'aria-label': what }, text),
        h(
          'button',
          { type: 'button', class: 'small', on: { click: () => copy(text, what) } },
          icon('copy'),
          'Copy',
        ),
      );
    const withheld = 'ROKT_SECRET is yours: this sandbox was given its credentials, and does not show them.';
    return [
      h('h2', {}, 'Point your application at the sandbox'),
      h(
        'p',
        {},
        'Set these where your application runs, then restart it. Its requests show up here as they arrive.',
      ),
      snip(env.join('\n'), 'Environment lines'),
      !state.hello.env.ROKT_SECRET && h('p', {}, withheld),
      h('h3', {}, 'Or send one event by hand'),
      snip(CURL, 'curl command'),
      h(
        'div',
        { class: 'wait' },
        h('span', { class: 'pulse', 'aria-hidden': 'true' }),
        'Waiting for the first request',
      ),
    ].filter(Boolean);
  },
};

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

function counters() {
  const { totals } = state;
  for (const name of ['requests', 'accepted', 'refused', 'twice', 'sessions'])
    setText($('s-' + name), count(totals[name]));
  const seen = totals.accepted + totals.refused;
  const share = seen ? (totals.accepted / seen) * 100 : 0;
  const none = '\u00a0';
  setText($('s-accepted-sub'), seen ? `${share === 100 ? '100' : share.toFixed(1)} % of events` : none);
  setText($('s-requests-sub'), totals.requests ? `${(seen / totals.requests).toFixed(1)} events each` : none);
  setText($('s-refused-sub'), totals.refused ? `${(100 - share).toFixed(1)} % of events` : 'none so far');
  setText($('s-twice-sub'), totals.twice ? 'accepted again' : 'none so far');
  setText(
    $('s-sessions-sub'),
    totals.sessions ? `${(totals.requests / totals.sessions).toFixed(1)} requests each` : none,
  );
}

/** How many requests came in each of the last seconds, by the sandbox's clock: [all, not 2xx]. */
let seconds = [];

function spark() {
  const most = Math.max(0, ...seconds.map(([all]) => all));
  const bars = (which) =>
    seconds
      .map((bin, i) => {
        const y = Math.round((bin[which] / Math.max(4, most)) * 38);
        return y ? `M${i * 4} 40v${-y}h3v${y}z` : '';
      })
      .join('');
  $('spark-all').setAttribute('d', bars(0));
  $('spark-off').setAttribute('d', bars(1));
  const rate = state.conn === 'live' ? seconds.slice(-5).reduce((sum, [all]) => sum + all, 0) / 5 : 0;
  setText($('s-rate'), rate >= 10 ? String(Math.round(rate)) : rate.toFixed(1));
  const label = `Requests a second over the last minute: now ${rate.toFixed(1)}, at most ${most}`;
  $('spark').setAttribute('aria-label', label);
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
  closeDetail,
  go,
  goSession,
  move,
  rebuild,
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

// The keyboard.

const HELP = [
  ['j / k', 'Older / newer, also ↓ ↑'],
  ['Enter', 'Open what is selected'],
  ['Esc', 'Close, then clear the search'],
  ['/', 'Search'],
  ['p', 'Pause or resume'],
  ['1 / 2', 'Requests / sessions'],
  ['f', 'Fail the next requests'],
  ['c', 'Copy as curl'],
  ['y', 'Copy as test'],
  ['t', 'Theme'],
  ['?', 'This help'],
];
for (const [keys, text] of HELP) {
  const names = keys === '/' ? ['/'] : keys.split(' / ');
  const shownKeys = names.flatMap((name, i) => (i ? [' ', h('kbd', {}, name)] : [h('kbd', {}, name)]));
  $('help-keys').append(h('dt', {}, ...shownKeys), h('dd', {}, text));
}
on('help-open', 'click', () => $('help').showModal());
on('help-close', 'click', () => $('help').close());
$('keys-on').checked = recall('keys') !== 'off';
on('keys-on', 'change', () => remember('keys', $('keys-on').checked ? 'on' : 'off'));

function escape() {
  if (!$('pop').hidden) closePop();
  else if ($('desk').classList.contains('open')) {
    closeDesk();
    $(narrow() ? 'list' : 'desk-open').focus();
  } else if (document.activeElement === $('q') && $('q').value) {
    $('q').value = '';
    setSearch('');
    rebuild();
  } else if (document.activeElement === $('q')) $('list').focus();
  else if (!$('detail').hidden && (state.view === 'requests' || narrow())) closeDetail();
  else if (filtered()) clearFilters();
}

const chosen = (form) => {
  const r = store.byNumber.get(state.chosen);
  if (r) copyAs(r, form);
};
const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  '/': () => $('q').focus(),
  p: () => setPaused(!state.paused),
  1: () => go('requests'),
  2: () => go('sessions'),
  '?': () => $('help').showModal(),
  t: nextTheme,
  f() {
    if (!state.hello) return;
    if (getComputedStyle($('desk')).display === 'none') openDesk();
    pickFault();
  },
  c: () => chosen('curl'),
  y: () => chosen('test'),
};
document.addEventListener('keydown', (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $('help').open) return;
  if (e.key === 'Escape') {
    escape();
    e.preventDefault();
    return;
  }
  const el = e.target;
  const isTyping =
    /^(TEXTAREA|SELECT)$/.test(el.tagName) || (el.tagName === 'INPUT' && !/^(checkbox|range)$/.test(el.type));
  if (!$('keys-on').checked || isTyping || !Object.hasOwn(KEYS, e.key)) return;
  e.preventDefault();
  KEYS[e.key]();
});

// The theme: as the system, light, dark.

const THEMES = ['', 'light', 'dark'];

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  const text = `Theme: ${name || 'as the system'}`;
  $('theme').title = text;
  $('theme-text').textContent = text;
  remember('theme', name);
}

function nextTheme() {
  const at = THEMES.indexOf(document.documentElement.dataset.theme || '');
  setTheme(THEMES[(at + 1) % THEMES.length]);
}

setTheme(THEMES.includes(recall('theme')) ? recall('theme') : '');
on('theme', 'click', nextTheme);

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
    seconds = data.seconds;
    spark();
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
