//! The plugin's cookies: their names and attributes, and values that are too long for one cookie (RFC 6265, section 6.1).

use http::{HeaderMap, HeaderValue};

use crate::cookies;

/// The names and attributes of the cookies of a plugin.
#[derive(Debug)]
pub(super) struct Jar {
    name: Box<str>,
    flow_prefix: Box<str>,
    attributes: &'static str,
}

/// The longest part of a value in one cookie, bytes: browsers take 4096 with name and attributes.
const PART: usize = 3800;
/// The most cookies of one value.
const MAX_PARTS: usize = 5;

/// The value is too long for [`MAX_PARTS`] cookies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Jar {
    /// `is_secure`: browsers send the cookies over TLS alone, and only to the host that set them.
    pub(super) fn new(name: &str, is_secure: bool) -> Self {
        let name = if is_secure { format!("__Host-{name}") } else { name.to_owned() };
        let attributes = match is_secure {
            true => "; Path=/; HttpOnly; SameSite=Lax; Secure",
            false => "; Path=/; HttpOnly; SameSite=Lax",
        };
        Self { flow_prefix: format!("{name}-flow-").into(), name: name.into(), attributes }
    }

    /// The name of the session's first cookie, to which its value is bound.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The name of the cookie of the login with this state.
    pub(super) fn flow_name(&self, id: &str) -> String {
        format!("{}{id}", self.flow_prefix)
    }

    /// True for every cookie of this plugin.
    pub(super) fn is_ours(&self, name: &[u8]) -> bool {
        name.starts_with(self.flow_prefix.as_bytes()) || self.part_of(name).is_some()
    }

    /// The value of the session's cookies, if all of them are there.
    pub(super) fn session(&self, headers: &HeaderMap) -> Option<Vec<u8>> {
        let mut parts: [Option<&[u8]>; MAX_PARTS] = [None; MAX_PARTS];
        for (name, value) in cookies::all(headers) {
            let place = self.part_of(name).and_then(|place| parts.get_mut(place));
            if let Some(place) = place {
                // If several cookies have one name, the first has the longest path or is the oldest.
                place.get_or_insert(value);
            }
        }
        let first = parts.first().copied().flatten()?;
        let (count, first) = first.split_at_checked(2)?;
        let count = match count {
            [digit @ b'1'..=b'5', b'.'] => usize::from(digit - b'0'),
            _ => return None,
        };
        let rest: Option<Vec<&[u8]>> = parts.get(1..count)?.iter().copied().collect();
        Some([&[first][..], &rest?].concat().concat())
    }

    /// The `Set-Cookie` headers that put `value` into the session's cookies, and take away those that it does not need any more.
    pub(super) fn set_session(&self, value: &str, sent: &HeaderMap) -> Result<Vec<HeaderValue>, TooLong> {
        let count = value.len().div_ceil(PART).max(1);
        if count > MAX_PARTS {
            return Err(TooLong);
        }
        let parts = value.as_bytes().chunks(PART).enumerate().map(|(place, part)| {
            let part = String::from_utf8_lossy(part);
            match place {
                0 => format!("{}={count}.{part}{}", self.name, self.attributes),
                _ => format!("{}.{place}={part}{}", self.name, self.attributes),
            }
        });
        let mut set: Vec<HeaderValue> = parts.filter_map(|text| HeaderValue::try_from(text).ok()).collect();
        let stale =
            cookies::all(sent).filter(|(name, _)| self.part_of(name).is_some_and(|place| place >= count));
        set.extend(stale.filter_map(|(name, _)| self.removed(name)));
        Ok(set)
    }

    /// The `Set-Cookie` headers that take away the session.
    pub(super) fn clear_session(&self, sent: &HeaderMap) -> Vec<HeaderValue> {
        let ours = cookies::all(sent).filter(|(name, _)| self.part_of(name).is_some());
        ours.filter_map(|(name, _)| self.removed(name)).collect()
    }

    /// The `Set-Cookie` headers that take away all cookies of this plugin.
    pub(super) fn clear_all(&self, sent: &HeaderMap) -> Vec<HeaderValue> {
        cookies::all(sent)
            .filter(|(name, _)| self.is_ours(name))
            .filter_map(|(name, _)| self.removed(name))
            .collect()
    }

    /// The cookies of logins that have begun.
    pub(super) fn flows<'h>(&'h self, sent: &'h HeaderMap) -> impl Iterator<Item = (&'h str, &'h [u8])> {
        let ours = cookies::all(sent).filter(|(name, _)| name.starts_with(self.flow_prefix.as_bytes()));
        ours.filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// The `Set-Cookie` header of a login.
    pub(super) fn set_flow(&self, name: &str, value: &str, max_age: u64) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("{name}={value}{}; Max-Age={max_age}", self.attributes)).ok()
    }

    /// The `Set-Cookie` header that takes a cookie away.
    pub(super) fn removed(&self, name: &[u8]) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&[name, b"=", self.attributes.as_bytes(), b"; Max-Age=0"].concat()).ok()
    }

    /// The place of a cookie among those of the session.
    fn part_of(&self, name: &[u8]) -> Option<usize> {
        match name.strip_prefix(self.name.as_bytes())? {
            [] => Some(0),
            [b'.', digit @ b'1'..=b'9'] => Some(usize::from(digit - b'0')),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    fn sent(cookies: &[HeaderValue]) -> HeaderMap {
        let pairs = cookies.iter().map(|set| set.to_str().unwrap().split_once(';').unwrap().0.to_owned());
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, pairs.collect::<Vec<_>>().join("; ").parse().unwrap());
        headers
    }

    #[test]
    fn long_values_take_several_cookies_and_come_back_whole_or_not_at_all() {
        let jar = Jar::new("session", true);
        for len in [0, 1, PART - 1, PART, PART + 1, 2 * PART, MAX_PARTS * PART] {
            let value: String = ('a'..='z').cycle().take(len).collect();
            let mut set = jar.set_session(&value, &HeaderMap::new()).unwrap();
            assert!(set.iter().all(|cookie| cookie.len() <= 4096));
            if len == 0 {
                continue;
            }
            assert_eq!(jar.session(&sent(&set)).unwrap(), value.as_bytes(), "{len}");
            set.reverse();
            assert_eq!(jar.session(&sent(&set)).unwrap(), value.as_bytes(), "{len}");
            for missing in 0..set.len() {
                let mut rest = set.clone();
                rest.remove(missing);
                assert!(rest.is_empty() || jar.session(&sent(&rest)).is_none(), "{len} without {missing}");
            }
        }
        let long = "a".repeat(MAX_PARTS * PART + 1);
        assert_eq!(jar.set_session(&long, &HeaderMap::new()), Err(TooLong));
    }

    #[test]
    fn a_value_that_shrinks_leaves_no_old_part_behind() {
        let jar = Jar::new("session", false);
        let before = sent(&jar.set_session(&"a".repeat(3 * PART), &HeaderMap::new()).unwrap());
        let set = jar.set_session("short", &before).unwrap();
        let texts: Vec<&str> = set.iter().map(|cookie| cookie.to_str().unwrap()).collect();
        assert_eq!(
            texts,
            [
                "session=1.short; Path=/; HttpOnly; SameSite=Lax",
                "session.1=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0",
                "session.2=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0",
            ]
        );
        assert_eq!(jar.clear_session(&before).len(), 3);
    }

    #[test]
    fn cookies_of_others_are_none_of_ours() {
        let jar = Jar::new("s", true);
        for (name, is_ours) in [
            ("__Host-s", true),
            ("__Host-s.1", true),
            ("__Host-s-flow-abc", true),
            ("s", false),
            ("__Host-s.x", false),
            ("__Host-s.12", false),
            ("__Host-session", false),
            ("__Host-", false),
        ] {
            assert_eq!(jar.is_ours(name.as_bytes()), is_ours, "{name}");
        }
        for value in ["", "1", "1.", "0.a", "6.a", "x.a", "2.a"] {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, format!("__Host-s={value}").parse().unwrap());
            assert_eq!(jar.session(&headers), (value == "1.").then(Vec::new), "{value}");
        }
    }
}
