//! Endpoints for uploaded files: modules and descriptor sets, which plugins name by their SHA-256.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, header};
use schemars::{JsonSchema, Schema, json_schema};
use serde::Serialize;
use signalbox_config::{BlobId, FieldError, Name, NotABlobId};

use super::call::{Call, json_response, no_content, ok};
use super::endpoint::{Access, Endpoint, Media};
use super::problem::Problem;
use crate::clock::{now_us, rfc3339};
use crate::publish::UploadError;
use crate::store::{BlobRow, Role};

pub(super) fn endpoints() -> Vec<Endpoint> {
    let editor = Access::Role(Role::Editor);
    vec![
        Endpoint::new(Method::GET, "/blobs", "listBlobs", |call| list(call).boxed())
            .text("plugins", "List the uploaded files, the newest first")
            .answer::<BlobList>(200, "The files, without their contents")
            .problems(&[503]),
        Endpoint::new(Method::POST, "/blobs", "postBlob", |call| post(call).boxed())
            .text("plugins", "Upload a file that plugins use. The answer has its SHA-256, by which they name it")
            .access(editor)
            .body(Media::Bytes, |_| file_schema(), BlobId::MAX_SIZE)
            .answer::<Blob>(200, "The file was there already")
            .answer::<Blob>(201, "The file is stored")
            .problems(&[409, 413, 415, 503]),
        Endpoint::new(Method::PUT, "/blobs/{sha256}", "putBlob", |call| put(call).boxed())
            .text("plugins", "Upload a file that plugins use, under the SHA-256 of its content")
            .access(editor)
            .body(Media::Bytes, |_| file_schema(), BlobId::MAX_SIZE)
            .answer::<Blob>(200, "The file was there already")
            .answer::<Blob>(201, "The file is stored")
            .problems(&[409, 413, 415, 422, 503]),
        Endpoint::new(Method::GET, "/blobs/{sha256}", "getBlob", |call| get(call).boxed())
            .text("plugins", "Download an uploaded file")
            .answer_as(200, "The file", "application/octet-stream", |_| file_schema())
            .problems(&[404, 503]),
        Endpoint::new(Method::DELETE, "/blobs/{sha256}", "deleteBlob", |call| delete(call).boxed())
            .text("plugins", "Delete an uploaded file that no plugin uses. A rollback to a revision that used it is refused afterwards")
            .access(editor)
            .empty(204, "The file is deleted")
            .problems(&[404, 409, 503]),
    ]
}

fn file_schema() -> Schema {
    json_schema!({"type": "string", "format": "binary"})
}

/// An uploaded file.
#[derive(Debug, Serialize, JsonSchema)]
struct Blob {
    /// The SHA-256 of its content, hexadecimal.
    sha256: BlobId,
    /// Bytes.
    size: u64,
    /// RFC 3339.
    created_at: String,
    /// The name of the token that uploaded it.
    created_by: String,
    /// The plugins that use it, in the current revision and in those that fleets still serve.
    used_by: BTreeSet<String>,
}

/// Uploaded files.
#[derive(Debug, Serialize, JsonSchema)]
struct BlobList {
    items: Vec<Blob>,
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Full(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            UploadError::Store(error) => error.into(),
        }
    }
}

/// The file of a row; `users` are the plugins that use each file.
fn view(users: &BTreeMap<BlobId, BTreeSet<Name>>, row: BlobRow) -> Blob {
    let users = users.get(&row.id).into_iter().flatten();
    Blob {
        sha256: row.id,
        size: row.size,
        created_at: rfc3339(row.created_at_us),
        created_by: row.created_by,
        used_by: users.map(Name::to_string).collect(),
    }
}

/// The file that the path names. What is no name cannot be found.
fn id(call: &Call) -> Result<BlobId, Problem> {
    call.path("sha256").parse().map_err(|error: NotABlobId| match call.method {
        Method::PUT => Problem::invalid(vec![FieldError::new("sha256", error.to_string())]),
        _ => Problem::not_found(error.to_string()),
    })
}

fn unknown(id: BlobId) -> Problem {
    Problem::not_found(format!("there is no uploaded file {id}"))
}

async fn list(call: Call) -> Result<Response, Problem> {
    let rows = call.app.metrics.store_call("blobs", call.app.publisher.files().list()).await?;
    let users = call.app.publisher.current().files_in_use();
    ok(&BlobList { items: rows.into_iter().map(|row| view(&users, row)).collect() })
}

async fn post(call: Call) -> Result<Response, Problem> {
    let id = BlobId::of(&call.body);
    save(&call, id).await
}

async fn put(call: Call) -> Result<Response, Problem> {
    let id = id(&call)?;
    let is = BlobId::of(&call.body);
    if !call.body.is_empty() && is != id {
        let message = format!("is not the SHA-256 of the body, which is {is}");
        return Err(Problem::invalid(vec![FieldError::new("sha256", message)]));
    }
    save(&call, id).await
}

/// Stores the body of a call.
async fn save(call: &Call, id: BlobId) -> Result<Response, Problem> {
    if call.body.is_empty() {
        return Err(Problem::malformed("the body is empty; it must be the file"));
    }
    let created_by = call.caller.as_ref().map_or("unknown", |caller| &*caller.principal.name).to_owned();
    let row = BlobRow { id, size: call.body.len() as u64, created_at_us: now_us(), created_by };
    let users = call.app.publisher.current().files_in_use();
    let is_new = call.app.publisher.files().save(&row, &call.body).await?;
    if is_new {
        call.audit(&format!("upload file {id}, {} bytes", row.size)).await;
        return json_response(StatusCode::CREATED, &view(&users, row));
    }
    let rows = call.app.publisher.files().list().await?;
    ok(&view(&users, rows.into_iter().find(|known| known.id == id).unwrap_or(row)))
}

async fn get(call: Call) -> Result<Response, Problem> {
    let id = id(&call)?;
    let content = call.app.publisher.files().read(id).await?.ok_or_else(|| unknown(id))?;
    let mut response = Response::new(content.into());
    let media = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    Ok(response)
}

async fn delete(call: Call) -> Result<Response, Problem> {
    let id = id(&call)?;
    match call.app.writer.delete_file(id).await? {
        Ok(true) => {}
        Ok(false) => return Err(unknown(id)),
        Err(users) => {
            let users: Vec<&str> = users.iter().map(Name::as_str).collect();
            let detail = format!("the file {id} is used by plugins/{}", users.join(", plugins/"));
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
    }
    call.audit(&format!("delete file {id}")).await;
    Ok(no_content())
}
