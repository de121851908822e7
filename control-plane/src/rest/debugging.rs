//! The debugging pages of the process, for administrators.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, Method, StatusCode, header, request};
use signalbox_process::debug::{self, DebugRequest, Page, Refusal};

use super::app::App;
use super::authorize::authorize;
use super::endpoint::Access;
use super::problem::Problem;
use crate::serve::Peer;
use crate::store::Role;

/// Answers a request below `/debug`.
pub(super) async fn answer(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut response =
        page(&app, &request.into_parts().0).await.unwrap_or_else(|problem| problem.into_response());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn page(app: &App, request: &request::Parts) -> Result<Response, Problem> {
    let wanted = DebugRequest::parse(request.uri.path(), request.uri.query());
    let Some(wanted) = wanted.filter(|_| app.profiling) else {
        return Err(Problem::not_found("there is nothing here"));
    };
    let peer = request.extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    authorize(app, Access::Role(Role::Admin), &request.method, &request.headers, peer)?;
    // A profile takes a minute, so none is taken for its head.
    if request.method != Method::GET {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not have this method");
        return Err(problem.header(header::ALLOW, HeaderValue::from_static("GET")));
    }
    let Page { content_type, body } =
        debug::answer(wanted.map_err(problem)?, Vec::new()).await.map_err(problem)?;
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

fn problem(Refusal { status, detail }: Refusal) -> Problem {
    Problem::new(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), detail)
}
