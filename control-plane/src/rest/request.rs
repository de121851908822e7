//! The parts of a request that are read before its endpoint runs: the query, the type of the body, the body.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;

use super::call::parse_flag;
use super::endpoint::{Endpoint, Media, Parameter, Place};
use super::problem::Problem;

/// The parameters of the query, all of which the endpoint must have.
pub(super) fn query(endpoint: &Endpoint, uri: &http::Uri) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Problem::malformed("the query is not UTF-8"))?;
    let known = || {
        endpoint
            .parameters
            .iter()
            .filter(|parameter| parameter.place == Place::Query)
            .map(|parameter| parameter.name)
    };
    if let Some((name, _)) = pairs.iter().find(|(name, _)| !known().any(|known| known == name)) {
        let known: Vec<&str> = known().collect();
        let known = if known.is_empty() {
            "this takes none".to_owned()
        } else {
            format!("known are {}", known.join(", "))
        };
        return Err(Problem::parameter(name, format!("is not known; {known}")));
    }
    // Here, so that no endpoint can take something else for `true`, and none passes over what is wrong.
    let is_boolean =
        |parameter: &Parameter| (parameter.schema)().get("type").is_some_and(|it| it == "boolean");
    for parameter in endpoint.parameters.iter().filter(|parameter| parameter.place == Place::Query) {
        let mut given = pairs.iter().filter(|(name, _)| name == parameter.name);
        if let Some((name, text)) = given.next()
            && is_boolean(parameter)
        {
            parse_flag(name, text)?;
            if given.next().is_some() {
                return Err(Problem::parameter(name, "is there twice"));
            }
        }
    }
    Ok(pairs)
}

/// Refuses only what cannot be meant: clients that name no type, or the one their library names by itself, are served.
pub(super) fn check_content_type(media: Media, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let (kind, subtype) = essence.split_once('/').unwrap_or((essence, ""));
    let is_yaml = subtype.contains("yaml");
    let wrong = match media {
        // A form has text of its own around the file.
        Media::Bytes => kind == "multipart",
        _ => {
            matches!(kind, "multipart" | "image" | "audio" | "video" | "font")
                || matches!(subtype, "html" | "xml" | "pdf" | "zip" | "gzip" | "x-protobuf" | "grpc")
                || (is_yaml && media != Media::Document)
        }
    };
    if !wrong {
        return Ok(());
    }
    let accepted = media.names().join(", ");
    let detail = format!("{essence} is not accepted here; send {accepted}");
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    Err(match HeaderValue::from_str(&accepted) {
        Ok(value) => problem.header(header::ACCEPT, value),
        Err(_) => problem,
    })
}

/// How long a body may take to come.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// How much of a body that is too large is taken in, bytes.
const MAX_DISCARDED: usize = 32 << 20;

pub(super) async fn read(body: Body, limit: usize, headers: &HeaderMap) -> Result<bytes::Bytes, Problem> {
    let too_large =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {limit} bytes"));
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    let waits = headers.contains_key(header::EXPECT);
    if waits && announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let deadline = tokio::time::Instant::now() + BODY_DEADLINE;
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let mut body = body;
    let mut collected = Vec::with_capacity(announced.unwrap_or(0).min(limit as u64) as usize);
    let mut len = 0;
    while let Some(frame) = tokio::time::timeout_at(deadline, body.frame()).await.map_err(late)? {
        let frame = frame.map_err(|error| Problem::malformed(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        len += data.len();
        if len <= limit {
            collected.extend_from_slice(&data);
        } else if len > limit + MAX_DISCARDED {
            break;
        } else {
            // Clients that are still sending read no answer: what is left is taken in and thrown away.
            collected = Vec::new();
        }
    }
    if len <= limit { Ok(collected.into()) } else { Err(too_large()) }
}
