/* What is shown where there is nothing to show. */
import { $, copy, h, icon } from './text.js';
import { app, filtered, state } from './store.js';

const CURL = `curl -i "$ROKT_ENDPOINT" \\
  -H "rokt-pub-id: $ROKT_PUB_ID" \\
  -H "rokt-secret: $ROKT_SECRET" \\
  -H "rokt-tag-id: $ROKT_TAG_ID" \\
  -H "Content-Type: application/json" \\
  -d '{"events": [{"eventType": "SignalViewed", "sessionId": "s-1",
       "parentGuid": "c-1", "clientUniqueId": "order-1",
       "eventTime": "'$(date -u +%FT%TZ)'"}]}'`;

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
    h('button', { type: 'button', on: { click: () => app.clearFilters() } }, 'Clear filters'),
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

/** Shows why the list is empty, or hides that. */
export function blank(isEmpty) {
  const el = $('blank');
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
