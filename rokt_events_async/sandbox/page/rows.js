/* The rows of the two lists: made once, then filled with whichever item scrolls in. */
import { clock, h, icon, many, milli, s, setText, short, span } from './text.js';
import { says, state, tone } from './store.js';
import { findings } from './findings.js';

const EVENTS = 25;
const cell = (cls, ...children) => h('span', { class: cls, role: 'gridcell' }, ...children);

function makeRequest() {
  const use = s('use', { href: '#i-ok' });
  const status = h('span', {});
  const ms = h('span', { class: 'ms' });
  const time = h('span', {});
  const say = h('span', { class: 'say' });
  const pillText = h('span', {});
  const pill = h('span', { class: 'pill' }, icon('fault'), pillText);
  const twiceText = h('span', {});
  const twice = h('span', { class: 'pill twice' }, icon('twice'), twiceText);
  const y = h('i', { class: 'y' });
  const x = h('i', { class: 'x' });
  const u = h('i', { class: 'u' });
  const cnt = h('span', { class: 'cnt' });
  const ses = cell('ses');
  const lat = cell('lat');
  const num = cell('num');
  const row = h(
    'div',
    { class: 'row', role: 'row' },
    cell('st', s('svg', { class: 'icon', 'aria-hidden': 'true' }, use), status),
    cell('tm', time, ms),
    cell('what', say, pill, twice),
    cell('ev', h('span', { class: 'meter', 'aria-hidden': 'true' }, y, x, u), cnt),
    ses,
    lat,
    num,
  );
  row.parts = { use, status, time, ms, say, pill, pillText, twice, twiceText, y, x, u, cnt, ses, lat, num };
  return row;
}

function bar(el, events) {
  el.hidden = !events;
  el.style.width = Math.min(100, (events * 100) / EVENTS) + '%';
}

function fillRequest(row, r) {
  const p = row.parts;
  const kind = tone(r);
  row.className = 'row ' + kind;
  p.use.setAttribute('href', '#i-' + kind);
  setText(p.status, r.status === null ? 'none' : String(r.status));
  setText(p.time, clock(r.t));
  setText(p.ms, milli(r.t));
  setText(p.say, says(r));
  p.pill.hidden = !r.fault;
  if (r.fault) setText(p.pillText, r.fault);
  p.twice.hidden = !r.twice;
  if (r.twice) setText(p.twiceText, `${r.twice} twice`);
  bar(p.y, r.accepted);
  bar(p.x, r.refused);
  bar(p.u, Math.max(0, r.total - r.accepted - r.refused));
  setText(p.cnt, r.total ? `${r.accepted}/${r.total}` : '—');
  setText(p.ses, short(r.session));
  setText(p.lat, span(r.latency));
  p.lat.classList.toggle('slow', r.latency >= 500);
  setText(p.num, String(r.n));
  const label = [
    `Request ${r.n}`,
    r.status === null ? 'no answer' : String(r.status),
    says(r),
    `${r.accepted} of ${many(r.total, 'event')} accepted`,
    r.refused && `${r.refused} refused`,
    r.fault && `fault ${r.fault}`,
    r.twice && `${r.twice} seen twice`,
    `session ${short(r.session)}`,
    clock(r.t),
  ];
  row.setAttribute('aria-label', label.filter(Boolean).join(', '));
}

function makeSession() {
  const parts = { ses: cell('ses'), flags: cell('flags'), what: cell('what2'), tm: cell('tm') };
  const row = h('div', { class: 'row s', role: 'row' }, parts.ses, parts.flags, parts.what, parts.tm);
  row.parts = parts;
  return row;
}

function fillSession(row, ses) {
  const p = row.parts;
  const { missing } = findings(ses);
  row.className = 'row s ' + (ses.refused ? 'bad' : ses.twice || missing ? 'part' : 'ok');
  setText(p.ses, short(ses.id));
  setText(p.tm, clock(ses.last));
  setText(p.what, `${many(ses.events, 'event')} in ${many(ses.requests.length, 'request')}`);
  const flags = [
    ['bad', 'bad', ses.refused, 'refused'],
    ['part', 'twice', ses.twice, 'seen twice'],
    ['part', 'warn', missing, 'missing'],
  ].filter(([, , n]) => n);
  p.flags.replaceChildren(
    ...flags.map(([cls, name, n, word]) =>
      h(
        'span',
        { class: 'flag ' + cls, title: `${n} ${word}` },
        icon(name),
        String(n),
        h('span', { class: 'sr' }, word),
      ),
    ),
  );
  const label = [
    `Session ${short(ses.id)}`,
    many(ses.events, 'event'),
    ...flags.map(([, , n, word]) => `${n} ${word}`),
  ];
  row.setAttribute('aria-label', label.join(', '));
}

export const KINDS = {
  requests: { make: makeRequest, fill: fillRequest, key: (r) => r.n, tall: 0, chosen: () => state.chosen },
  sessions: {
    make: makeSession,
    fill: fillSession,
    key: (x) => x.id,
    tall: 50,
    chosen: () => state.chosenSession,
  },
};
