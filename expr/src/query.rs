//! The parameters of a query, as forms are encoded.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The values of the parameters called `name`, in order; `Err`: one is not UTF-8.
pub(crate) fn values<'q>(
    query: Option<&'q str>,
    name: &str,
) -> impl Iterator<Item = Result<Cow<'q, str>, NotUtf8>> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_named = if needs_decoding(key) { decoded_bytes(key).eq(name.bytes()) } else { key == name };
        is_named.then(|| decode(value))
    })
}

/// A parameter that is not UTF-8 once it is decoded.
#[derive(Debug)]
pub(crate) struct NotUtf8;

fn needs_decoding(text: &str) -> bool {
    memchr::memchr2(b'%', b'+', text.as_bytes()).is_some()
}

/// A plus sign is a space; a percent sign without two hexadecimal digits stays.
fn decoded_bytes(text: &str) -> impl Iterator<Item = u8> + '_ {
    text.split('+')
        .enumerate()
        .flat_map(|(index, part)| (index > 0).then_some(b' ').into_iter().chain(percent_decode_str(part)))
}

fn decode(text: &str) -> Result<Cow<'_, str>, NotUtf8> {
    if !needs_decoding(text) {
        return Ok(Cow::Borrowed(text));
    }
    String::from_utf8(decoded_bytes(text).collect()).map(Cow::Owned).map_err(|_| NotUtf8)
}
