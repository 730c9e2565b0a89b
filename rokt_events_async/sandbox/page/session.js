/* One session: what is odd about it, its events along the usual sequence, and the same as a table. */
import { $, clock, copy, h, icon, milli, narrow, s, short, span, vis } from './text.js';
import { app, filter } from './store.js';
import { findings, LANES } from './findings.js';
import { open } from './request.js';

const WIDTH = 46;
const HEIGHT = 40;
const TOP = 30;
const RADIUS = 11;
let shownVersion = -1;

export const isStale = (ses) => ses.version !== shownVersion;

const toneOf = (x) => (x.accepted > 1 ? 'part' : x.accepted ? 'ok' : x.errors.length ? 'bad' : 'none');
const codes = (x) => x.errors.map(([code]) => vis(code, 60)).join(', ');

function verdict(x) {
  if (x.accepted > 1) return `accepted ${x.accepted} times`;
  if (x.accepted) return 'accepted';
  return x.errors.length ? codes(x) : 'not taken';
}

export function showSession(ses) {
  const el = $('detail');
  const found = findings(ses);
  const isSame = el.dataset.session === ses.id;
  const lanes = el.querySelector('.lane-scroll');
  const body = el.querySelector('.d-body');
  const left = lanes && isSame ? lanes.scrollLeft : 0;
  const top = body && isSame ? body.scrollTop : 0;
  const held = el.contains(document.activeElement) && document.activeElement.dataset.act;
  shownVersion = ses.version;
  el.dataset.session = ses.id;
  el.hidden = false;
  el.className = 'detail';
  el.setAttribute('aria-label', `Session ${short(ses.id)}`);
  const act = (id, text, name, go) =>
    h('button', { type: 'button', class: 'small', 'data-act': id, on: { click: go } }, icon(name), text);
  const requests = () => {
    filter.session = ses.id;
    app.closeDetail();
    app.go('requests');
  };
  const back = h(
    'button',
    { type: 'button', class: 'ghost square', on: { click: app.closeDetail } },
    icon('back'),
    h('span', { class: 'sr' }, 'Back'),
  );
  const head = h(
    'div',
    { class: 'd-head' },
    narrow() && back,
    h('h2', {}, 'Session', h('span', { class: 'mono' }, narrow() ? short(ses.id) : vis(ses.id, 60))),
    h('span', { class: 'spring' }),
    act('copy', 'Copy id', 'copy', () => copy(ses.id, 'Session id')),
    act('reqs', narrow() ? 'Requests' : 'Its requests', 'list', requests),
  );
  const lines = found.lines.map(([cls, name, text]) =>
    h('li', { class: cls }, icon(name), h('span', {}, text)),
  );
  const content = [
    h('ul', { class: 'finds' }, ...lines),
    swim(found),
    legend(),
    h('h3', {}, 'In order'),
    h('div', { class: 'scroll-x' }, table(found)),
  ];
  el.replaceChildren(head, h('div', { class: 'd-body', tabindex: '-1' }, ...content));
  el.querySelector('.lane-scroll').scrollLeft = left;
  el.querySelector('.d-body').scrollTop = top;
  const again = held && el.querySelector(`[data-act="${held}"]`);
  if (again) again.focus();
}

function table(found) {
  const rows = found.events.map((x, i) => {
    const kind = toneOf(x);
    const gap = i ? Math.max(0, x.at - found.events[i - 1].at) : 0;
    const [, lane] = LANES.find(([id]) => id === x.lane);
    const link = (n) => {
      const go = () => {
        app.go('requests');
        open(n, true);
      };
      const attributes = {
        type: 'button',
        class: 'link mono',
        title: `Open request ${n}`,
        'data-act': `r${i}-${n}`,
      };
      return h('button', { ...attributes, on: { click: go } }, String(n));
    };
    return h(
      'tr',
      { class: kind },
      h('td', { class: 'mono' }, clock(x.at) + milli(x.at)),
      h('td', { class: 'mono' }, i ? '+' + span(gap) : ''),
      h('td', {}, x.lane === 'other' ? `${lane} ${vis(x.e.type, 30)}` : lane),
      h('td', { class: 'mono' }, short(x.e.parent)),
      h('td', {}, h('span', { class: 'v' }, icon(kind === 'part' ? 'twice' : kind), verdict(x))),
      h('td', {}, ...x.numbers.flatMap((n, k) => (k ? [' ', link(n)] : [link(n)]))),
    );
  });
  const names = ['Event time', 'Gap', 'Lane', 'Parent', 'Verdict', 'Request'];
  const heads = names.map((name) => h('th', { scope: 'col' }, name));
  return h('table', { class: 'evs' }, h('thead', {}, h('tr', {}, ...heads)), h('tbody', {}, ...rows));
}

function legend() {
  const key = (children, text) =>
    h('span', {}, s('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' }, ...children), text);
  const dot = (cls) => s('g', { class: cls }, s('circle', { cx: 8, cy: 8, r: 6 }));
  const refused = dot('ev-dot bad');
  refused.append(s('path', { d: 'M5.5 5.5l5 5M10.5 5.5l-5 5', stroke: 'currentColor' }));
  const twice = s(
    'g',
    { class: 'ev-dot part second' },
    s('circle', { class: 'back', cx: 10, cy: 6.5, r: 5 }),
    s('circle', { cx: 6, cy: 9, r: 5 }),
  );
  return h(
    'div',
    { class: 'key' },
    key([dot('ev-dot ok')], 'accepted'),
    key([refused], 'refused'),
    key([twice], 'twice'),
    key([dot('ghost-dot')], 'missing'),
    key([dot('ghost-dot calm')], 'not viewed'),
  );
}

/** The events from left to right by order, not by time; the gaps stand between them. */
function swim(found) {
  const { events } = found;
  const used = LANES.filter(([id]) => id !== 'other' || events.some((x) => x.lane === 'other'));
  const y = (lane) => TOP + used.findIndex(([id]) => id === lane) * HEIGHT + HEIGHT / 2;
  const lead = found.gone.length ? 1 : 0;
  const x = (i) => (i + lead) * WIDTH + WIDTH / 2 + 6;
  const width = Math.max(200, x(events.length - 1) + WIDTH);
  const height = TOP + used.length * HEIGHT + 6;
  const label = `${events.length} events in order. ${found.lines.map(([, , text]) => text).join(' ')} The table below has the same.`;
  const svg = s('svg', { width, height, role: 'img', 'aria-label': label });
  used.forEach((lane, i) => {
    if (i % 2 === 0)
      svg.append(s('rect', { class: 'band', x: 0, y: TOP + i * HEIGHT, width: '100%', height: HEIGHT }));
  });
  events.forEach((event, i) => {
    if (i) svg.append(...gapBefore(event, events[i - 1], x(i) - WIDTH / 2, height));
    if (event.lane !== 'creative') return;
    const j = events.findIndex((other) => other.lane === 'viewed' && other.e.parent === event.e.parent);
    if (j <= i) return;
    const from = y('creative');
    const to = y('viewed');
    const d = `M${x(i)} ${from + RADIUS}C${x(i)} ${from + 28} ${x(j)} ${to - 28} ${x(j)} ${to - RADIUS}`;
    svg.append(s('path', { class: 'link-line', d }));
  });
  const ghost = (cx, lane, title, calm) => {
    const [, , letter] = LANES.find(([id]) => id === lane);
    const circle = s('circle', { cx, cy: y(lane), r: RADIUS });
    svg.append(
      s(
        'g',
        { class: 'ghost-dot' + (calm ? ' calm' : '') },
        s('title', {}, title),
        circle,
        s('text', { x: cx, y: y(lane) + 4 }, letter),
      ),
    );
  };
  for (const lane of found.gone) ghost(x(-1), lane, `No ${lane} impression`);
  events.forEach((event, i) => {
    if (found.isWhole && event.lane === 'creative' && event.accepted && !found.viewed.has(event.e.parent))
      ghost(x(i), 'viewed', 'Not viewed', true);
    if (found.isWhole && event.lane === 'viewed' && event.accepted && !found.creatives.has(event.e.parent))
      ghost(x(i), 'creative', 'Viewed without an impression');
    svg.append(dotOf(event, x(i), y(event.lane)));
  });
  const laneNames = h(
    'div',
    { class: 'lane-names', 'aria-hidden': 'true' },
    ...used.map(([, text]) => h('div', {}, text)),
  );
  const scroll = {
    class: 'lane-scroll',
    tabindex: '0',
    role: 'group',
    'aria-label': 'Swim-lane, scrolls sideways',
  };
  return h('div', { class: 'lanes' }, laneNames, h('div', scroll, svg));
}

function gapBefore(event, before, x, height) {
  const gap = Math.max(0, event.at - before.at);
  const text = '+' + (gap >= 1000 ? span(gap).replace(' ', '') : gap);
  return [
    s('line', { class: 'step', x1: x, x2: x, y1: 20, y2: height - 6 }),
    s('text', { class: 'gap' + (gap >= 1000 ? ' long' : ''), x, y: 15 }, text),
  ];
}

function dotOf(event, cx, cy) {
  const kind = toneOf(event);
  const [, , letter] = LANES.find(([id]) => id === event.lane);
  const title = `${vis(event.e.type, 60)} ${short(event.e.parent)} at ${clock(event.at)}, ${verdict(event)}`;
  const g = s('g', { class: 'ev-dot ' + kind + (kind === 'part' ? ' second' : '') }, s('title', {}, title));
  if (kind === 'part') g.append(s('circle', { class: 'back', cx: cx + 4, cy: cy - 3, r: RADIUS }));
  g.append(s('circle', { cx, cy, r: RADIUS }));
  if (kind === 'bad') {
    g.append(
      s('path', {
        d: `M${cx - 4} ${cy - 4}l8 8M${cx + 4} ${cy - 4}l-8 8`,
        stroke: 'currentColor',
        class: 'cross',
      }),
    );
  } else g.append(s('text', { x: cx, y: cy + 4 }, letter));
  if (kind === 'part') g.append(s('text', { class: 'x2', x: cx + 19, y: cy + 15 }, '×' + event.accepted));
  return g;
}
