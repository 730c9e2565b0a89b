/* What the page knows: the requests that are kept, their sessions, the filter; and what a request means. */

export const KEEP = 10000;
const KEEP_CHARS = 128 * 1024 * 1024; // of bodies
const SLACK = 500;

export const state = {
  hello: null,
  settings: null,
  totals: { requests: 0, accepted: 0, refused: 0, twice: 0, sessions: 0 },
  view: 'requests',
  paused: false,
  chosen: 0, // the number of a request
  chosenSession: '',
  conn: 'connecting',
  missed: 0, // requests that came faster than they were shown
  trimmed: false, // the sandbox had forgotten requests when the page was opened
};

export const store = {
  all: [], // what is kept, oldest first
  byNumber: new Map(),
  sessions: new Map(), // by id, in the order of their last request
  inbox: [], // what has come since the last frame
  chars: 0, // of the bodies in `all`
};

export function forgetAll() {
  store.all = [];
  store.byNumber.clear();
  store.sessions.clear();
  store.inbox.length = 0;
  store.chars = 0;
  Object.assign(state, { chosen: 0, chosenSession: '', missed: 0 });
}

export function keep(r) {
  store.all.push(r);
  store.byNumber.set(r.n, r);
  store.chars += r.body.length;
  if (r.session === null) return;
  let ses = store.sessions.get(r.session);
  if (ses) store.sessions.delete(r.session);
  else
    ses = {
      id: r.session,
      requests: [],
      events: 0,
      cut: false,
      accepted: 0,
      refused: 0,
      twice: 0,
      version: 0,
      trimmed: false,
    };
  ses.last = r.t;
  ses.requests.push(r);
  ses.events += r.total;
  ses.cut ||= r.cut;
  ses.accepted += r.accepted;
  ses.refused += r.refused;
  ses.twice += r.twice;
  ses.version++;
  store.sessions.set(r.session, ses);
}

export function forgetOld() {
  let over = store.all.length > KEEP + SLACK ? store.all.length - KEEP : 0;
  for (let chars = store.chars; chars > KEEP_CHARS && over < store.all.length - 1; over++) {
    chars -= store.all[over].body.length;
  }
  for (const r of store.all.splice(0, over)) {
    store.byNumber.delete(r.n);
    store.chars -= r.body.length;
    const ses = store.sessions.get(r.session);
    if (!ses) continue;
    if (ses.requests[0] === r) ses.requests.shift();
    else ses.requests = ses.requests.filter((other) => other !== r);
    ses.trimmed = true;
    ses.version++;
    if (!ses.requests.length) store.sessions.delete(ses.id);
  }
}

export function boundInbox() {
  const over = store.inbox.length - KEEP - SLACK; // a hidden tab has no frames
  if (over > 0) store.inbox.splice(0, over);
}

// What a request means.

/** One of the five answers. */
export function tone(r) {
  if (r.status === null) return 'none';
  if (r.refusal) return 'bad';
  if (r.fault && r.status >= 300) return 'fault';
  return r.refused ? 'part' : 'ok';
}

/** The sandbox took the events, and the client heard an error, or nothing. */
export const untold = (r) => r.accepted > 0 && !r.told;

export function says(r) {
  if (r.refusal) return r.refusal[1];
  if (untold(r)) return r.status !== null && r.status < 300 ? 'taken, unreadable' : 'taken, not told';
  if (r.status === null || r.status >= 300) return 'not taken';
  if (!r.refused) return r.twice === r.accepted && r.twice ? 'accepted again' : 'accepted';
  return r.codes.join(', ');
}

const KNOWN = ['SignalImpression', 'SignalViewed', 'SignalResponse'];
const names = {
  eventtype: 'type',
  eventtime: 'time',
  sessionid: 'session',
  parentguid: 'parent',
  clientuniqueid: 'client',
};

/** The events of a request, read from its body when they are first asked for. */
export function eventsOf(r) {
  if (r.events) return r.events;
  let found = [];
  if (r.total && !r.cut) {
    try {
      const body = JSON.parse(r.body);
      for (const key of Object.keys(body)) if (key.toLowerCase() === 'events') found = body[key];
    } catch {
      found = [];
    }
  }
  r.events = (Array.isArray(found) ? found : []).map((raw, i) => eventOf(r, raw, r.odd[i] || {}));
  return r.events;
}

function eventOf(r, raw, odd) {
  const event = {
    raw,
    type: '',
    time: '',
    session: '',
    parent: '',
    client: '',
    meta: [],
    errors: odd.errors || [],
    before: odd.before || 0,
  };
  for (const key of Object.keys(raw || {})) {
    const name = key.toLowerCase();
    if (Object.hasOwn(names, name))
      event[names[name]] = asText(raw[key]); // the last of a name counts, as in the sandbox
    else if (name === 'metadata' && Array.isArray(raw[key])) event.meta = raw[key].map(pairOf);
  }
  event.ok = r.taken && !r.refusal && !event.errors.length;
  return event;
}

const asText = (value) => (typeof value === 'string' ? value : '');

function pairOf(raw) {
  const pair = ['', ''];
  for (const key of Object.keys(raw || {})) {
    if (key.toLowerCase() === 'name') pair[0] = asText(raw[key]);
    if (key.toLowerCase() === 'value') pair[1] = asText(raw[key]);
  }
  return pair;
}

/** What events share that are equal in every field: one that was accepted twice was counted twice. */
export const sameAs = (e) => JSON.stringify([e.type, e.time, e.parent, e.session, e.client, e.meta]);

/** The pair that says which impression, view or response it is. */
export const labelOf = (e) => (e.meta.find(([name]) => name === 'AdditionalData') || [])[1];

// The filter.

export const filter = { text: '', status: '', verdict: '', type: '', session: '' };
let terms = [];

export function setSearch(text) {
  filter.text = text;
  terms = text
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => {
      const m = /^(session|status|code|fault|type):(.+)$/.exec(word);
      return m ? [m[1], m[2]] : ['', word];
    });
}

export const filtered = () =>
  Boolean(filter.text || filter.status || filter.verdict || filter.type || filter.session);

function body(r) {
  if (!r.body.includes('\\')) return r.body;
  try {
    return r.body + JSON.stringify(JSON.parse(r.body));
  } catch {
    return r.body;
  }
}

function found(r, field, word) {
  if (field === 'session') return (r.session || '').toLowerCase().startsWith(word);
  if (field === 'status') return String(r.status ?? 'none') === word;
  if (field === 'code') return r.codes.some((code) => code.toLowerCase().includes(word));
  if (field === 'fault') return (r.fault || '').includes(word);
  if (field === 'type') return r.types.some((type) => type.toLowerCase().includes(word));
  return (
    [r.n, r.session, r.fault, r.status, ...r.codes].join('\n').toLowerCase().includes(word) ||
    body(r).toLowerCase().includes(word)
  );
}

export function verdictFits(x) {
  if (filter.verdict === 'accepted') return !x.refused && x.accepted > 0;
  if (filter.verdict === 'refused') return x.refused > 0 || Boolean(x.refusal);
  if (filter.verdict === 'twice') return x.twice > 0;
  if (filter.verdict === 'untold') return x.requests ? x.requests.some(untold) : untold(x);
  return true;
}

export function matches(r) {
  if (filter.session && r.session !== filter.session) return false;
  if (filter.status && tone(r) !== filter.status) return false;
  if (!verdictFits(r)) return false;
  if (filter.type === 'other' && r.types.every((type) => KNOWN.includes(type))) return false;
  if (filter.type && filter.type !== 'other' && !r.types.includes(filter.type)) return false;
  return terms.every(([field, word]) => found(r, field, word));
}

export function sessionMatches(ses) {
  if (filter.session && ses.id !== filter.session) return false;
  if (!verdictFits(ses)) return false;
  if (!filter.text) return true;
  if (ses.seen !== ses.version || ses.seenText !== filter.text) {
    Object.assign(ses, { seen: ses.version, seenText: filter.text, hit: ses.requests.some(matches) });
  }
  return ses.hit;
}

/** What the parts of the page ask of the whole; `app.js` fills it in. */
export const app = {};
