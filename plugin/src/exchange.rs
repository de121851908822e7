use std::any::{Any, TypeId};
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use signalbox_config::Name;

use crate::consumers::Identity;

/// Facts about a request and its response beyond their heads.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The client's identity, once a plugin has found it out.
    pub identity: Option<Identity>,
    /// True if the response may be meant for one user whom [`Exchange::identity`] does not tell from others, and perhaps no header of the
    /// request either: a plugin that authenticates sets it, and a shared cache must not answer others by the response.
    pub is_personal: bool,
    /// The upstream that a plugin has chosen for the request.
    pub(crate) upstream: Option<Name>,
    /// The id that a plugin has chosen for the request.
    pub(crate) request_id: Option<HeaderValue>,
    /// True if the headers of the identity are not put into the request's head: no plugin uses them.
    pub(crate) defers_identity: bool,
    /// Inline for the six of `rate-limit` and two more.
    response_headers: SmallVec<[(HeaderName, HeaderValue, Placement); 8]>,
    /// The state of plugins, and what they want dropped at the end.
    pub(crate) kept: Kept,
    /// The plugin whose hook is called.
    pub(crate) current: PluginKey,
}

/// Tells the plugins of a request apart, two of one type, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PluginKey(pub(crate) usize);

/// The state that plugins leave in an exchange, to its end.
#[derive(Default)]
pub struct Kept {
    states: Vec<(PluginKey, TypeId, Box<dyn Any>)>,
    guards: Vec<Box<dyn Any>>,
}

impl Kept {
    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty() && self.guards.is_empty()
    }

    /// Takes over what `other` keeps.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.states.append(&mut other.states);
        self.guards.append(&mut other.guards);
    }

    fn position<T: Any>(&self, key: PluginKey) -> Option<usize> {
        self.states.iter().position(|(owner, type_id, _)| *owner == key && *type_id == TypeId::of::<T>())
    }

    pub(crate) fn get<T: Any>(&self, key: PluginKey) -> Option<&T> {
        self.states.get(self.position::<T>(key)?)?.2.downcast_ref()
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, {} guards", self.states.len(), self.guards.len())
    }
}

impl Drop for Kept {
    /// The guards go first, for they may look at what the states share.
    fn drop(&mut self) {
        self.guards.clear();
    }
}

#[derive(Debug, Clone, Copy)]
enum Placement {
    Set,
    Append,
}

impl Exchange {
    /// Leaves a value for later hooks of this plugin in this exchange, in the place of one of the same type. Another plugin
    /// does not see it, nor does another one of the same type.
    pub fn insert<T: Any>(&mut self, value: T) {
        self.take::<T>();
        self.kept.states.push((self.current, TypeId::of::<T>(), Box::new(value)));
    }

    /// The value of this type that this plugin has left.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.kept.get(self.current)
    }

    /// The same, to change it.
    pub fn get_mut<T: Any>(&mut self) -> Option<&mut T> {
        let place = self.kept.position::<T>(self.current)?;
        self.kept.states.get_mut(place)?.2.downcast_mut()
    }

    /// Takes the value of this type that this plugin has left.
    pub fn take<T: Any>(&mut self) -> Option<T> {
        let place = self.kept.position::<T>(self.current)?;
        self.kept.states.swap_remove(place).2.downcast().ok().map(|value| *value)
    }

    /// Keeps `guard` until the exchange has ended, and drops it then. That happens once, however it ends: when the response is
    /// complete, when it is broken off, when the client goes away, and when something panics.
    pub fn guard(&mut self, guard: impl Any) {
        self.kept.guards.push(Box::new(guard));
    }

    /// Sends the request to another upstream than the one that its route has drawn. The plugins of that upstream run in the place of
    /// the other's, as far as these have not run.
    pub fn choose_upstream(&mut self, name: Name) {
        self.upstream = Some(name);
    }

    /// The upstream that a plugin has chosen.
    pub fn chosen_upstream(&self) -> Option<&Name> {
        self.upstream.as_ref()
    }

    /// Gives the request another id: in the access log, in the proxy's own errors, and in `X-Request-Id` for the upstream.
    pub fn set_request_id(&mut self, id: HeaderValue) {
        self.request_id = Some(id);
    }

    /// Takes out what is to be kept to the end of the exchange.
    pub(crate) fn take_kept(&mut self) -> Kept {
        std::mem::take(&mut self.kept)
    }

    /// Leaves the headers of the identity to the proxy, because no plugin of the request uses them.
    pub fn defer_identity(&mut self) {
        self.defers_identity = true;
    }

    /// The headers by which the upstream learns the client's identity, as far as they are not in the request's head.
    pub fn deferred_headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.identity.iter().filter(|_| self.defers_identity).flat_map(Identity::headers)
    }

    /// Sets a header on whatever answer goes to the client, the proxy's own errors included.
    pub fn set_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        if self.response_headers.iter().any(|(before, ..)| *before == name) {
            self.response_headers.retain(|(before, ..)| *before != name);
        }
        self.response_headers.push((name, value, Placement::Set));
    }

    /// Adds a header beside those of its name (`Vary`).
    pub fn append_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.response_headers.push((name, value, Placement::Append));
    }

    /// The headers that were set and added, in this order. They belong on the answer behind its own headers, except
    /// those that one of them [replaces](Self::replaces).
    pub fn response_headers(&self) -> impl ExactSizeIterator<Item = (&HeaderName, &HeaderValue)> {
        self.response_headers.iter().map(|(name, value, _)| (name, value))
    }

    /// True if an answer's own headers of this name are left out.
    pub fn replaces(&self, name: &HeaderName) -> bool {
        self.response_headers
            .iter()
            .any(|(set, _, placement)| matches!(placement, Placement::Set) && set == name)
    }

    /// Puts those headers into the map of an answer. The proxy calls it once, after the `on_response` hooks.
    pub fn write_response_headers(&mut self, headers: &mut HeaderMap) {
        for (name, value, placement) in self.response_headers.drain(..) {
            match placement {
                Placement::Set => headers.insert(name, value).map_or((), drop),
                Placement::Append => drop(headers.append(name, value)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_headers_are_set_or_appended_in_order() {
        let mut exchange = Exchange::default();
        exchange.set_response_header(http::header::SERVER, HeaderValue::from_static("a"));
        exchange.append_response_header(http::header::VARY, HeaderValue::from_static("origin"));
        exchange.set_response_header(http::header::SERVER, HeaderValue::from_static("b"));
        assert!(exchange.replaces(&http::header::SERVER) && !exchange.replaces(&http::header::VARY));
        let texts =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let added: Vec<_> = exchange.response_headers().map(texts).collect();
        assert_eq!(added, ["vary: origin", "server: b"]);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::SERVER, HeaderValue::from_static("upstream"));
        headers.insert(http::header::VARY, HeaderValue::from_static("accept"));
        exchange.write_response_headers(&mut headers);
        assert_eq!(headers.get_all(http::header::SERVER).iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(headers.get_all(http::header::VARY).iter().collect::<Vec<_>>(), ["accept", "origin"]);
    }

    #[test]
    fn each_plugin_has_a_state_of_its_own() {
        let mut exchange = Exchange { current: PluginKey(1), ..Exchange::default() };
        exchange.insert(1_u32);
        exchange.insert("one");
        exchange.current = PluginKey(2);
        assert!(exchange.get::<u32>().is_none());
        exchange.insert(2_u32);
        *exchange.get_mut::<u32>().unwrap() += 1;
        exchange.current = PluginKey(1);
        exchange.insert(7_u32);
        assert_eq!(exchange.get::<u32>(), Some(&7));
        assert_eq!(exchange.take::<&str>(), Some("one"));
        assert_eq!((exchange.take::<&str>(), exchange.take::<u32>()), (None, Some(7)));
        exchange.current = PluginKey(2);
        assert_eq!(exchange.get::<u32>(), Some(&3));
    }
}
