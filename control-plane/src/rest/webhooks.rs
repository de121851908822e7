//! The endpoints that test a webhook, and say what became of its events.

use axum::response::Response;
use futures_util::FutureExt as _;
use http::Method;
use signalbox_config::{Kind, Name};

use super::call::{Call, ok};
use super::endpoint::{Access, Endpoint};
use super::problem::Problem;
use crate::store::Role;
use crate::webhook::{Attempt, Deliveries};

pub(super) fn endpoints() -> Vec<Endpoint> {
    let tag = Kind::Webhook.plural();
    vec![
        Endpoint::new(Method::POST, "/webhooks/{name}/test", "testWebhook", |call| test(call).boxed())
            .text(tag, "Send a test event to a webhook at once, and answer with what the receiver said")
            .access(Access::Role(Role::Admin))
            .answer::<Attempt>(200, "The attempt was made; `result` says if the receiver took the event")
            .problems(&[404]),
        Endpoint::new(Method::GET, "/webhooks/{name}/deliveries", "listWebhookDeliveries", |call| {
            deliveries(call).boxed()
        })
        .text(
            tag,
            "Read the last attempts to deliver events to a webhook, as the control plane that answers knows them. One control plane sends, and `sender` names it",
        )
        .answer::<Deliveries>(200, "The last attempts, newest first")
        .problems(&[404]),
    ]
}

async fn test(call: Call) -> Result<Response, Problem> {
    let name = name(&call)?;
    let attempt = call.app.webhooks.test(&name).await.ok_or_else(|| unknown(&name))?;
    call.audit(&format!("test of webhook {name}")).await;
    ok(&attempt)
}

async fn deliveries(call: Call) -> Result<Response, Problem> {
    let name = name(&call)?;
    ok(&call.app.webhooks.deliveries(&name).await.ok_or_else(|| unknown(&name))?)
}

fn name(call: &Call) -> Result<Name, Problem> {
    call.path("name").parse().map_err(|message: String| Problem::not_found(message))
}

fn unknown(name: &Name) -> Problem {
    Problem::not_found(format!("webhook/{name} does not exist"))
}
