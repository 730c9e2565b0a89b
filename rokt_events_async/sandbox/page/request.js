/* One request opened: its events with their verdicts, both bodies, the headers, and copies of it to take away. */
import {
  $,
  clock,
  copy,
  count,
  h,
  icon,
  many,
  milli,
  narrow,
  short,
  span,
  toast,
  vis,
  visLines,
} from './text.js';
import { app, eventsOf, filter, labelOf, state, store, tone, untold } from './store.js';
import { detail } from './stream.js';

const PHRASE = {
  200: 'OK',
  207: 'Multi-Status',
  307: 'Temporary Redirect',
  400: 'Bad Request',
  401: 'Unauthorized',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  422: 'Unprocessable Content',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
};
const SHOWN = 100; // events
const DEEPEST = 40;
const MOST_PARTS = 3000;
const TABS = ['events', 'request', 'answer', 'headers'];
let tab = 'events';

export const faultOf = (name) => state.hello.faults.find((fault) => fault.name === name);

function lead(r) {
  const n = many(r.total, 'event');
  const fault = r.fault && faultOf(r.fault);
  const what = fault ? fault.says : `status ${r.fault}`;
  if (r.refusal)
    return `The whole request was refused: ${r.refusal[2]}. ${r.total ? `None of its ${n} was taken.` : 'Nothing was taken.'}`;
  if (untold(r)) {
    return `The sandbox took ${many(r.accepted, 'event')}, but the client was not told (${what}). Sent again, they count twice.`;
  }
  if (r.status === null || r.status >= 300) {
    const again = r.total ? `; the client should send ${r.total === 1 ? 'its event' : `its ${n}`} again` : '';
    return `Injected fault: ${what}. Nothing was taken${again}.`;
  }
  if (r.refused)
    return `${many(r.refused, 'event')} of ${r.total} refused, ${r.accepted} accepted. Refused events must not be sent again.`;
  if (r.twice)
    return `${r.twice === 1 ? 'One event' : `${r.twice} events`} had been accepted before: counted twice.`;
  return r.total === 1 ? 'Its one event was accepted.' : `All ${r.total} events were accepted.`;
}

const square = (name, text, act) =>
  h(
    'button',
    { type: 'button', class: 'ghost square', title: text, on: { click: act } },
    icon(name),
    h('span', { class: 'sr' }, text),
  );
const small = (name, text, act) =>
  h('button', { type: 'button', class: 'small', on: { click: act } }, icon(name), text);

const answeredAfter = (r) => (r.latency == null ? '  not answered' : `  answered after ${span(r.latency)}`);

/** A latency that came after its request was shown. */
export function showLatency(r) {
  const el = $('d-latency');
  if (el && state.view === 'requests' && state.chosen === r.n) el.textContent = answeredAfter(r);
}

export function showRequest(r) {
  const el = $('detail');
  const held = el.contains(document.activeElement) && document.activeElement.title;
  const kind = tone(r);
  const was = el.hidden;
  el.hidden = false;
  el.className = 'detail ' + kind;
  el.setAttribute('aria-label', `Request ${r.n}`);
  $('work').classList.toggle('has-detail', state.view === 'requests');
  const head = h(
    'div',
    { class: 'd-head' },
    narrow() && square('back', 'Back (Esc)', app.closeDetail),
    h(
      'h2',
      {},
      h('span', { class: 'st' }, icon(kind), r.status === null ? 'No answer' : String(r.status)),
      h('span', { class: 'muted' }, PHRASE[r.status] || ''),
    ),
    h('span', { class: 'spring' }),
    h('span', { class: 'muted mono' }, `No. ${r.n}`),
    square('up', 'Newer (k)', () => app.move(-1)),
    square('down', 'Older (j)', () => app.move(1)),
    !narrow() && square('bad', 'Close (Esc)', app.closeDetail),
  );
  const facts = h('dl', { class: 'facts' });
  const fact = (name, ...value) => facts.append(h('dt', {}, name), h('dd', {}, ...value));
  const time = h('span', { class: 'mono' }, clock(r.t) + milli(r.t));
  fact('Received', time, h('span', { class: 'muted', id: 'd-latency' }, answeredAfter(r)));
  if (r.session !== null) {
    const go = { click: () => app.goSession(r.session) };
    fact(
      'Session',
      h(
        'button',
        { type: 'button', class: 'link mono', title: 'Show this session', on: go },
        vis(r.session, 64),
      ),
    );
  }
  if (r.fault) fact('Fault', h('span', { class: 'pill' }, icon('fault'), r.fault));
  const only = () => {
    filter.session = r.session;
    app.rebuild();
    if (narrow()) app.closeDetail();
  };
  const acts = h(
    'div',
    { class: 'acts' },
    small('copy', 'Copy as curl', () => copyAs(r, 'curl')),
    small('copy', 'Copy as test', () => copyAs(r, 'test')),
    r.session !== null && small('filter', 'Only this session', only),
  );
  const isOdd = untold(r) || (kind === 'ok' && r.twice > 0);
  const leadIcon = isOdd || kind === 'part' || kind === 'bad' ? 'warn' : kind;
  const lead_ = h('p', { class: 'lead' + (isOdd ? ' part' : '') }, icon(leadIcon), h('span', {}, lead(r)));
  const panel = h('div', { class: 'd-panel', role: 'tabpanel', id: 'd-panel' });
  const tabs = h('div', { class: 'd-tabs', role: 'tablist', 'aria-label': 'Parts of the request' });
  for (const id of TABS) {
    const text = id === 'events' ? `Events ${r.total}` : id[0].toUpperCase() + id.slice(1);
    const on = { click: () => pickTab(r, id) };
    tabs.append(
      h('button', { type: 'button', role: 'tab', 'aria-controls': 'd-panel', 'data-tab': id, on }, text),
    );
  }
  tabs.addEventListener('keydown', (e) => {
    const step = e.key === 'ArrowRight' ? 1 : e.key === 'ArrowLeft' ? -1 : 0;
    if (!step) return;
    e.preventDefault();
    const at = (TABS.indexOf(tab) + step + TABS.length) % TABS.length;
    tabs.children[at].focus();
    pickTab(r, TABS[at]);
  });
  el.replaceChildren(
    head,
    h(
      'div',
      { class: 'd-body', tabindex: '-1' },
      h('div', { class: 'd-sum' }, lead_, facts, acts),
      tabs,
      panel,
    ),
  );
  pickTab(r, tab);
  const again = held && [...el.querySelectorAll('.d-head button')].find((button) => button.title === held);
  if (again) again.focus({ preventScroll: true });
  if (was) app.measure();
}

function pickTab(r, id) {
  tab = id;
  for (const button of $('detail').querySelectorAll('[data-tab]')) {
    const on = button.dataset.tab === id;
    button.setAttribute('aria-selected', on);
    button.tabIndex = on ? 0 : -1;
  }
  fillPanel(r, $('d-panel'));
}

const nothing = (text) => h('p', { class: 'void' }, text);

async function fillPanel(r, panel) {
  if (tab === 'events') {
    const events = eventsOf(r);
    const some = events.slice(0, SHOWN);
    const why = r.cut
      ? 'The body is too long to be shown as events.'
      : r.total || r.body
        ? 'The body was not read as events. See Request.'
        : 'The connection was reset before the body was there.';
    panel.replaceChildren(...(events.length ? some.map((e) => eventItem(r, e)) : [nothing(why)]));
    if (some.length < events.length)
      panel.append(nothing(`${count(events.length - some.length)} more events. See Request.`));
    return;
  }
  const slow = setTimeout(() => panel.replaceChildren(nothing('Loading')), 150);
  let d;
  try {
    d = await detail(r.n);
  } catch {
    d = undefined;
  }
  clearTimeout(slow);
  if (!panel.isConnected || tab === 'events') return;
  if (d === undefined) panel.replaceChildren(nothing('Not connected.'));
  else if (d === null) panel.replaceChildren(nothing('The sandbox no longer has this request.'));
  else if (tab === 'headers') panel.replaceChildren(...headerTables(d));
  else panel.replaceChildren(...bodyOf(d));
}

function headerTables(d) {
  const line = ([name, value]) =>
    h(
      'tr',
      {},
      h('th', { scope: 'row' }, vis(name)),
      h(
        'td',
        { class: value === null ? 'held' : '' },
        value === null ? 'withheld, never recorded' : vis(value),
      ),
    );
  const table = (pairs) => h('table', { class: 'hd' }, h('tbody', {}, ...pairs.map(line)));
  const request = [['rokt-secret', null], ['rokt-pub-id', null], ...d.request];
  const answer = d.response.length ? table(d.response) : nothing('No answer, so no headers.');
  return [h('h3', {}, 'Request'), table(request), h('h3', {}, 'Answer'), answer];
}

function bodyOf(d) {
  const isRequest = tab === 'request';
  const text = isRequest ? d.body : d.answer;
  if (text === null) return [nothing(d.note || 'The client got no answer.')];
  if (text === '') return [nothing(isRequest ? 'No body was read.' : 'The answer had an empty body.')];
  const size = `${count(new Blob([text]).size)} bytes${d.cut ? ', perhaps cut' : ''}`;
  const act = () => copy(text, isRequest ? 'Request body' : 'Answer');
  return [
    h('div', { class: 'pre-head' }, size, h('span', { class: 'spring' }), small('copy', 'Copy', act)),
    json(text),
  ];
}

function eventItem(r, e) {
  const waits = !e.ok && !e.errors.length && !r.refusal;
  const name = e.ok ? (e.before ? 'twice' : 'ok') : waits ? 'none' : 'bad';
  const cls = e.ok ? (e.before ? 'part' : 'ok') : waits ? 'none' : 'bad';
  const word = e.ok ? 'Accepted:' : waits ? 'Not taken:' : 'Refused:';
  const label = labelOf(e);
  const summary = h(
    'summary',
    {},
    icon(name),
    h(
      'span',
      { class: 't' },
      h('span', { class: 'sr' }, word),
      h('b', {}, vis(e.type, 60)),
      h('span', { class: 'muted' }, label ? vis(label, 60) : ''),
    ),
    h('span', { class: 'g' }, short(e.parent)),
    ...e.errors.map(([code, message]) =>
      h('span', { class: 'err' }, h('code', {}, vis(code, 80)), ' ', vis(message)),
    ),
    e.before > 0 && h('span', { class: 'dup' }, `Accepted before, in No. ${e.before}`),
  );
  const item = h('details', { class: 'e ' + cls }, summary);
  item.addEventListener('toggle', () => {
    if (item.open && item.children.length === 1)
      item.append(h('div', { class: 'full' }, json(JSON.stringify(e.raw))));
  });
  return item;
}

/** Formatted JSON as text nodes in spans; what is no JSON is shown as it is. */
function json(text) {
  const pre = h('pre', { class: 'json', tabindex: '0' });
  try {
    if (text.length > 50000) throw new RangeError('too long to be coloured');
    pre.append(...formatted(JSON.parse(text)));
  } catch {
    pre.textContent = visLines(text);
  }
  return pre;
}

/** Raises a RangeError for what is too deep, or has too many parts. */
function formatted(value) {
  const parts = [];
  const put = (cls, words) => {
    if (parts.push(cls ? h('span', { class: cls }, words) : words) > MOST_PARTS)
      throw new RangeError('too many parts');
  };
  const literal = (v) => vis(JSON.stringify(v), 4000);
  (function walk(v, pad) {
    if (pad.length > 2 * DEEPEST) throw new RangeError('too deep');
    if (!v || typeof v !== 'object') {
      put(typeof v === 'string' ? 'v' : 'w', literal(v));
      return;
    }
    const isList = Array.isArray(v);
    const keys = isList ? v : Object.keys(v);
    const [opening, closing] = isList ? '[]' : '{}';
    if (!keys.length) {
      put('p', opening + closing);
      return;
    }
    const isFlat =
      !isList && keys.length <= 2 && keys.every((k) => typeof v[k] !== 'object' && String(v[k]).length < 60);
    put('p', opening);
    keys.forEach((k, i) => {
      put('', isFlat ? (i ? ' ' : '') : '\n' + pad + '  ');
      if (!isList) {
        put('k', literal(k));
        put('p', ': ');
      }
      walk(isList ? k : v[k], pad + '  ');
      if (i < keys.length - 1) put('p', ',');
    });
    put('', isFlat ? '' : '\n' + pad);
    put('p', closing);
  })(value, '');
  return parts;
}

// Copies.

/** Copies a request as a shell command or as a test, which sends the same body again. */
export async function copyAs(r, form) {
  let d;
  try {
    d = await detail(r.n);
  } catch {
    d = null;
  }
  if (d === null) toast('The sandbox no longer has this request');
  else if (d.cut) toast('The body is too long to be copied');
  else if (!d.isText) toast('The body is not UTF-8, and cannot be copied as text');
  else if (form === 'curl') await copy(asCurl(d), 'curl command');
  else await copy(asTest(r, d), 'Test');
}

const contentType = (d) => (d.request.find(([name]) => name.toLowerCase() === 'content-type') || [])[1] || '';

/** For a shell. Control characters are written as escapes: pasted into a terminal, they would be keys. */
function quote(text) {
  const escape = (c) => '\\x' + c.charCodeAt(0).toString(16).padStart(2, '0');
  if (!/[\u0000-\u001f\u007f]/.test(text)) return "'" + text.replace(/'/g, "'\\''") + "'";
  return "$'" + text.replace(/[\\']/g, '\\$&').replace(/[\u0000-\u001f\u007f]/g, escape) + "'";
}

function asCurl(d) {
  return [
    `curl -i ${quote(state.hello.endpoint)}`,
    `  -H "rokt-pub-id: $ROKT_PUB_ID" -H "rokt-secret: $ROKT_SECRET" -H "rokt-tag-id: $ROKT_TAG_ID"`,
    `  -H ${quote('Content-Type: ' + contentType(d))}`,
    `  --data-raw ${quote(d.body)}\n`,
  ].join(' \\\n');
}

/** A JSON string is a Python literal too, once it is ASCII and has no escaped slashes. */
const literal = (text) =>
  JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'),
  );

function failNext(fault) {
  if (/^[345]\d\d$/.test(fault)) return `    rokt_sandbox.fail_next(${fault})`;
  if (faultOf(fault)) return `    rokt_sandbox.fail_next(${literal(fault)})`;
  return `    # It met a fault of the program's own: ${vis(fault)}`;
}

function asTest(r, d) {
  const isOld = r.codes.includes('SandboxEventTimeOutOfRange');
  const body = isOld ? d.body : d.body.replace(/("eventTime"\s*:\s*)"\d[^"]*"/gi, '$1"@NOW@"');
  const secret = r.refusal && r.refusal[0] === 401 ? '"wrong"' : 'credentials.secret';
  const lines = [
    'import contextlib',
    'import http.client',
    'import urllib.request',
    'from datetime import UTC, datetime',
    '',
    `BODY = ${literal(body)}`,
    '',
    '',
    `def test_request_${r.n}(rokt_sandbox):`,
    r.fault && failNext(r.fault),
    '    credentials = rokt_sandbox.credentials',
    '    request = urllib.request.Request(',
    '        rokt_sandbox.url,',
    '        data=BODY.replace("@NOW@", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")).encode(),',
    '        headers={',
    `            "Content-Type": ${literal(contentType(d))},`,
    '            "rokt-pub-id": credentials.pub_id,',
    `            "rokt-secret": ${secret},`,
    '            "rokt-tag-id": credentials.tag_id,',
    '        },',
    '    )',
    '    with contextlib.suppress(OSError, http.client.HTTPException):  # any status but 2xx, or no answer',
    '        urllib.request.urlopen(request, timeout=5).read()',
    `    assert rokt_sandbox.requests[-1].status ${r.status === null ? 'is None' : '== ' + r.status}`,
    `    assert len(rokt_sandbox.events) == ${r.accepted}`,
    '',
  ];
  return lines.filter((line) => line !== null && line !== undefined).join('\n');
}

/** Opens a request; with `focus`, the keyboard goes there too. */
export function open(n, focus) {
  const r = store.byNumber.get(n);
  if (!r) return;
  app.remember();
  state.chosen = n;
  app.touch();
  showRequest(r);
  if (focus || narrow()) $('detail').querySelector('button').focus({ preventScroll: true });
}
