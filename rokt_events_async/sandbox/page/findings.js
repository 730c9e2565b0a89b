/* What a session's events say: the usual sequence, what is missing, what is doubled. */
import { many, short } from './text.js';
import { eventsOf, labelOf, sameAs, state } from './store.js';

/** The usual sequence, then what is none of it: id, name, letter. */
export const LANES = [
  ['placement', 'Placement', 'P'],
  ['slot', 'Slot', 'S'],
  ['creative', 'Creative', 'C'],
  ['viewed', 'Viewed', 'V'],
  ['response', 'Response', 'R'],
  ['other', 'Unknown', '?'],
];

const IMPRESSIONS = {
  ImpressionPlacement: 'placement',
  ImpressionSlot: 'slot',
  ImpressionCreative: 'creative',
};

function laneOf(e) {
  if (e.type === 'SignalViewed') return 'viewed';
  if (e.type === 'SignalResponse') return 'response';
  if (e.type !== 'SignalImpression') return 'other';
  const label = labelOf(e);
  return Object.hasOwn(IMPRESSIONS, label) ? IMPRESSIONS[label] : 'other';
}

const MOST = 200;

/** The latest events of a session, at most 200, and whether these are all. */
function collect(ses) {
  const byEvent = new Map();
  let i = ses.requests.length - 1;
  for (; i >= 0 && byEvent.size < MOST; i--) {
    const r = ses.requests[i];
    for (const e of eventsOf(r).slice(0, MOST)) {
      const key = sameAs(e);
      let it = byEvent.get(key);
      if (!it) {
        it = { e, lane: laneOf(e), at: Date.parse(e.time) || r.t, accepted: 0, errors: [], numbers: [] };
        byEvent.set(key, it);
      }
      if (it.numbers.length < MOST) it.numbers.unshift(r.n);
      if (e.ok) it.accepted++;
      if (it.errors.length) continue;
      if (e.errors.length) it.errors = e.errors;
      else if (r.refusal) it.errors = [[r.refusal[1], r.refusal[2]]];
    }
  }
  const events = [...byEvent.values()].sort((a, b) => a.at - b.at || a.numbers[0] - b.numbers[0]);
  return { events, isAll: i < 0 };
}

/** Returns the session's events in order, and lines on them: [tone, icon, text]. */
export function findings(ses) {
  if (ses.foundFor === ses.version) return ses.found;
  const { events, isAll } = collect(ses);
  const taken = events.filter((x) => x.accepted);
  const has = (lane) => taken.some((x) => x.lane === lane);
  const parents = (lane) => new Set(taken.filter((x) => x.lane === lane).map((x) => x.e.parent));
  const creatives = parents('creative');
  const viewed = parents('viewed');
  const later = (from) => LANES.slice(from, 5).some(([id]) => has(id)); // one that has only begun misses nothing yet
  const isWhole = isAll && !ses.trimmed && !ses.cut && !state.missed && !state.trimmed;
  const gone = isWhole
    ? [!has('placement') && later(1) && 'placement', !has('slot') && later(2) && 'slot'].filter(Boolean)
    : [];
  const lines = gone.map((lane) => ['part', 'warn', `No ${lane} impression was accepted.`]);
  const orphans = isWhole ? taken.filter((x) => x.lane === 'viewed' && !creatives.has(x.e.parent)) : [];
  if (orphans.length) {
    const ids = orphans.map((x) => short(x.e.parent)).join(', ');
    lines.push(['part', 'warn', `${many(orphans.length, 'creative')} viewed without an impression: ${ids}.`]);
  }
  const missing = lines.length;
  const twice = events.filter((x) => x.accepted > 1);
  if (twice.length) {
    const numbers = [...new Set(twice.flatMap((x) => x.numbers))].join(', ');
    lines.push([
      'part',
      'twice',
      `${many(twice.length, 'event')} accepted more than once, in requests ${numbers}.`,
    ]);
  }
  const refused = events.filter((x) => x.errors.length && !x.accepted);
  if (refused.length) {
    const codes = [...new Set(refused.flatMap((x) => x.errors.map(([code]) => code)))].join(', ');
    lines.push(['bad', 'bad', `${many(refused.length, 'event')} refused: ${codes}.`]);
  }
  const waiting = events.filter((x) => !x.accepted && !x.errors.length);
  if (waiting.length)
    lines.push(['none', 'none', `${many(waiting.length, 'event')} sent but not taken yet.`]);
  const unseen = [...creatives].filter((id) => !viewed.has(id));
  if (unseen.length) {
    const it = unseen.length === 1 ? 'it' : 'them';
    lines.push([
      'none',
      'info',
      `${many(unseen.length, 'creative')} not viewed. That is normal if the customer did not scroll to ${it}.`,
    ]);
  }
  if (!has('response'))
    lines.push(['none', 'info', 'No response. That is normal: most customers do not choose.']);
  if (!isWhole)
    lines.push([
      'none',
      'info',
      isAll
        ? 'Some requests are not shown here, so what is missing cannot be said.'
        : 'The latest events; it had more, so what is missing cannot be said.',
    ]);
  else if (!lines.some(([kind]) => kind === 'part' || kind === 'bad'))
    lines.unshift(['ok', 'ok', 'Complete: nothing missing, nothing doubled.']);
  ses.foundFor = ses.version;
  ses.found = { events, lines, missing, creatives, viewed, gone, isWhole };
  return ses.found;
}
