//! Limits the number of tokens that a client may use of a large language model in a span of time.
//!
//! Each client may use `limit` tokens in any span of time as long as `window`; `by` defines a client, as for
//! [rate-limit](rate-limit.md). The window slides: beyond a limit of 64, a token counts for up to 1/63 of the window longer than it
//! must. Each plugin counts on its own, over all routes that it is attached to.
//!
//! ## Counting
//!
//! A request counts for `estimate` tokens when it comes. It is answered `429` with `Retry-After` if fewer are left. Once its response
//! has passed, the estimate is replaced by what the response says: the member `usage` of a JSON object, or of the last server-sent
//! event that has one. `count` chooses among its numbers: `total_tokens` (or the sum of the others), `prompt_tokens`, or
//! `completion_tokens`; `input_tokens` and `output_tokens` are other names of the latter two. Tokens beyond the estimate count even
//! if that exceeds the limit; then no request passes until enough of them are a window ago.
//!
//! The response passes as it comes, byte by byte: nothing is held back, and nothing is kept of it. A response that does not say what
//! was used keeps the estimate: an error, one of another type than JSON and server-sent events, one that its client broke off
//! before the end, or one that the proxy made. OpenAI's API tells the usage of a stream only if the request asks for it by
//! `"stream_options": {"include_usage": true}`.
//!
//! The upstream is asked for responses without a content coding (`Accept-Encoding: identity`), because those could not be read.
//! So `compress` has no effect on these routes. As their bodies pass a filter, the responses have no `Content-Length`.
//!
//! ## Stores
//!
//! With `store: local` each proxy counts by itself. With `store: redis` all proxies count together, as with
//! [rate-limit](rate-limit.md), whose page tells more of Redis: a request waits for one answer, at most for `redis.timeout`, and a script
//! reads and raises the count in one step, by the clock of the server. The estimate is replaced by another such step, beside
//! requests: a client that asks again at once may still be counted with the estimate. If Redis is away then, the estimate stays.
//! `on_store_error` decides about requests while Redis does not answer: `local` lets each proxy count by itself, from zero, `allow` lets
//! them pass uncounted, and `deny` answers 503. The responses then carry no headers about the limit.
//!
//! ## Headers
//!
//! Every response carries `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset`, and the same as `X-RateLimit-…`, in tokens.
//! They tell the count at the beginning of the response, with the estimate of this request. `ietf_headers` and `hide_headers` are
//! those of [rate-limit](rate-limit.md).
//!
//! ## Changes
//!
//! Counts outlive a change of `limit`, `estimate` and all that concerns headers; a change of `by`, `header`, `count` or `window`
//! begins anew, and so does a restart of the proxy with `store: local`. There a plugin knows about 65,000 clients at once; should all be in use, clients that
//! are new share one count in each of 64 groups.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{
    Abort, BodyFilter, BodyWish, Clock, Context, Definition, Flow, Origin, Output, Plugin, PluginRequest,
    PluginResponse, Reply, hooks,
};

mod config;
#[cfg(test)]
mod tests;
mod usage_scanner;

pub(crate) use self::config::Config;
use self::config::{Count, Store};
use self::usage_scanner::UsageScanner;
use crate::limit::{
    Budget, ClientId, ClientKey, Counters, LimitHeaders, OnStoreError, SharedCounts, SharedId, Verdict,
    nanoseconds, retry_after,
};
use crate::redis::{RedisPool, Unavailable};

/// Limits the number of tokens that a client may use in a span of time.
pub(crate) struct TokenLimit {
    account: Account,
    key: ClientKey,
    /// The meaning of the counts, which is a part of their keys in Redis.
    scope: Box<[u8]>,
    on_store_error: OnStoreError,
    headers: Option<LimitHeaders>,
}

/// The counts, and all that is needed to settle one.
#[derive(Clone)]
struct Account {
    /// The counts that all proxies share; `None`: each counts by itself.
    shared: Option<Arc<SharedCounts>>,
    /// The counts of this proxy alone.
    counters: Arc<Counters>,
    budget: Budget,
    estimate: u64,
    count: Count,
    clock: Clock,
}

/// The estimate that a request was counted with.
#[derive(Debug, Clone, Copy)]
struct Debit {
    client: Debtor,
    counted_at: u64,
}

/// A client in the counts that it was counted in.
#[derive(Debug, Clone, Copy)]
enum Debtor {
    Local(ClientId),
    Shared(SharedId),
}

/// Reads a response while it passes. It settles the account at the end of the body, or when it is dropped before.
struct Reader {
    scanner: UsageScanner,
    account: Account,
    /// `None`: it is settled.
    debit: Option<Debit>,
}

#[hooks]
impl Plugin for TokenLimit {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let Some(shared) = &self.account.shared else {
            let (client, verdict) = self.take_alone(request);
            self.tell(&verdict, request);
            return self.decide(client, &verdict, request);
        };
        let client = SharedId(self.key.client(request).digest(&self.scope));
        Flow::Wait(Box::pin(async move {
            let grant = shared.take(client, &self.account.budget, self.account.estimate, 0).await;
            match (grant, self.on_store_error) {
                (Ok(grant), _) => {
                    self.tell(&grant.verdict, request);
                    self.decide(Debtor::Shared(client), &grant.verdict, request)
                }
                (Err(Unavailable), OnStoreError::Allow) => Flow::Continue,
                (Err(Unavailable), OnStoreError::Local) => {
                    let (client, verdict) = self.take_alone(request);
                    self.decide(client, &verdict, request)
                }
                (Err(Unavailable), OnStoreError::Deny) => {
                    let detail = "the store of the token limit is unavailable";
                    Reply::problem(StatusCode::SERVICE_UNAVAILABLE, detail).into()
                }
            }
        }))
    }

    fn uses_consumer_headers(&self) -> bool {
        self.key.uses_consumer_headers()
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        if response.origin != Origin::Upstream || !is_readable(&response.head.headers) {
            return BodyWish::Pass;
        }
        let Some(debit) = response.exchange.take::<Debit>() else { return BodyWish::Pass };
        BodyWish::Filter(Box::new(Reader {
            scanner: UsageScanner::new(),
            account: self.account.clone(),
            debit: Some(debit),
        }))
    }
}

impl TokenLimit {
    /// Counts a request in this proxy alone.
    fn take_alone(&self, request: &PluginRequest<'_>) -> (Debtor, Verdict) {
        let account = &self.account;
        let client = account.counters.id(&self.key.client(request));
        let verdict = account.counters.take(client, account.now(), &account.budget, account.estimate);
        (Debtor::Local(client), verdict)
    }

    fn tell(&self, verdict: &Verdict, request: &mut PluginRequest<'_>) {
        if let Some(headers) = &self.headers {
            headers.write(verdict, request.exchange);
        }
    }

    fn decide(&self, client: Debtor, verdict: &Verdict, request: &mut PluginRequest<'_>) -> Flow<'static> {
        if let Some(wait) = verdict.refused_for {
            let mut headers = HeaderMap::new();
            if self.headers.is_some() {
                headers.insert(RETRY_AFTER, retry_after(wait));
            }
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Reply::Problem { status, detail: "too many tokens".into(), headers }.into();
        }
        request.head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        request.exchange.insert(Debit { client, counted_at: verdict.counted_at });
        Flow::Continue
    }
}

impl Definition for TokenLimit {
    const NAME: &'static str = "token-limit";
    const DESCRIPTION: &'static str =
        "Limits how many tokens of a large language model a client may use in a time.";
    const ORDER: i32 = 908;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.check(errors);
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let budget = config.budget();
        let key = ClientKey::new(config.by, config.header.as_deref());
        let shared = config.redis.as_ref().filter(|_| config.store == Store::Redis).map(|settings| {
            Arc::new(SharedCounts::new(RedisPool::shared(context, settings), settings.key_prefix()))
        });
        let account = Account {
            shared,
            // The limit is not part of it: a changed limit must not give everybody a fresh count.
            counters: context.state(&(config.count, budget.window, &key), Counters::default),
            budget,
            estimate: config.estimate(),
            count: config.count,
            clock: context.clock.clone(),
        };
        let headers = (!config.hide_headers)
            .then(|| LimitHeaders::new(context.name.as_str(), &budget, config.ietf_headers));
        let scope = config.scope(context.name.as_str());
        let on_store_error = config.on_store_error;
        errors.finish(Some(Self { account, key, scope, on_store_error, headers }))
    }
}

impl Account {
    fn now(&self) -> u64 {
        nanoseconds(self.clock.monotonic())
    }

    /// Replaces the estimate by the tokens that were used.
    fn settle(&self, debit: Debit, used: u64) {
        let (more, less) = (used.saturating_sub(self.estimate), self.estimate.saturating_sub(used));
        let Debit { client, counted_at } = debit;
        match client {
            _ if more == 0 && less == 0 => {}
            Debtor::Local(client) if more > 0 => {
                self.counters.charge(client, self.now(), &self.budget, more);
            }
            Debtor::Local(client) => {
                self.counters.give_back(client, self.now(), &self.budget, counted_at, less);
            }
            Debtor::Shared(client) => {
                let Some(shared) = self.shared.clone() else { return };
                let budget = self.budget;
                // If there are too many already, or Redis is away, the estimate stays.
                let counts = Arc::clone(&shared);
                counts.pool().spawn(async move {
                    let _ = match more {
                        0 => shared.give_back(client, &budget, counted_at, less).await,
                        more => shared.charge(client, &budget, more).await,
                    };
                });
            }
        }
    }
}

impl BodyFilter for Reader {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.scanner.read(&data);
        out.push(data);
        Ok(())
    }

    fn on_end(&mut self, _: &mut HeaderMap, _: &mut Output) -> Result<(), Abort> {
        // Before the client sees the end, and may ask again.
        self.settle();
        Ok(())
    }
}

impl Reader {
    fn settle(&mut self) {
        let used = self.scanner.tokens().and_then(|tokens| self.account.count.of(tokens));
        if let Some((debit, used)) = self.debit.take().zip(used) {
            self.account.settle(debit, used);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.settle();
    }
}

/// True for JSON and server-sent events without a content coding.
fn is_readable(headers: &HeaderMap) -> bool {
    let is_encoded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(HeaderValue::to_str) else { return false };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_known = matches!(&*essence, "application/json" | "text/event-stream" | "application/x-ndjson");
    !is_encoded && (is_known || essence.ends_with("+json"))
}
