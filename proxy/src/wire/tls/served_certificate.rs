use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::SignatureScheme;
use rustls::pki_types::UnixTime;
use rustls::sign::CertifiedKey;
use signalbox_config::{Certificate, KeyType, Name, NotCurrent, Staple};
use tracing::warn;

/// A certificate that clients are served.
pub struct ServedCertificate {
    pub name: Name,
    pub key_type: KeyType,
    /// The server names for which it is chosen.
    pub snis: Box<[Box<str>]>,
    pub certified: Arc<CertifiedKey>,
    stapled: Option<Stapled>,
}

/// The certificate with its OCSP response.
struct Stapled {
    certified: Arc<CertifiedKey>,
    from: i64,
    until: i64,
    /// True once the log has reported that the response is no longer stapled.
    expiry_logged: AtomicBool,
}

impl ServedCertificate {
    /// Creates it from a certificate whose key was loaded already. A response that cannot be stapled is omitted and
    /// logged.
    pub fn new(name: &Name, certificate: &Certificate, certified: Arc<CertifiedKey>) -> Self {
        let stapled = match certificate.staple() {
            Ok(staple) => staple.map(|Staple { der, from, until, .. }| {
                let certified = CertifiedKey { ocsp: Some(der.to_vec()), ..CertifiedKey::clone(&certified) };
                Stapled { certified: Arc::new(certified), from, until, expiry_logged: AtomicBool::new(false) }
            }),
            Err(error) => {
                warn!(certificate = %name, error, "the OCSP response of a certificate is not stapled");
                None
            }
        };
        let Certificate { key_type, ref snis, .. } = *certificate;
        Self { name: name.clone(), key_type, snis: snis.clone(), certified, stapled }
    }

    /// The certificate to serve at `now`, seconds since 1970: an expired OCSP response is not stapled.
    pub fn at(&self, now: i64) -> &Arc<CertifiedKey> {
        let Some(stapled) = &self.stapled else { return &self.certified };
        let Stapled { from, until, .. } = *stapled;
        match NotCurrent::check(from, until, now) {
            Ok(()) => &stapled.certified,
            Err(why) => {
                if !stapled.expiry_logged.swap(true, Ordering::Relaxed) {
                    let (reason, at) = match why {
                        NotCurrent::NotYet(at) => ("not yet good", at),
                        NotCurrent::Expired(at) => ("expired", at),
                    };
                    let at =
                        jiff::Timestamp::from_second(at).map_or_else(|_| String::new(), |at| at.to_string());
                    warn!(
                        certificate = %self.name, reason, at, "the OCSP response of a certificate is not stapled"
                    );
                }
                &self.certified
            }
        }
    }

    /// The certificate to serve now.
    pub fn now(&self) -> &Arc<CertifiedKey> {
        self.at(i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX))
    }

    /// True if a client with these signature schemes can verify signatures of its key.
    pub fn is_for(&self, schemes: &[SignatureScheme]) -> bool {
        self.certified.key.choose_scheme(schemes).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_expired_is_not_stapled_any_more() {
        let key = rcgen::KeyPair::generate().unwrap();
        let made =
            rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let signing = provider.key_provider.load_private_key(der).unwrap();
        let bare = Arc::new(CertifiedKey::new(vec![made.der().clone()], signing));
        let with = CertifiedKey { ocsp: Some(vec![1]), ..CertifiedKey::clone(&bare) };
        let shown = ServedCertificate {
            name: "c".parse().unwrap(),
            key_type: KeyType::Ecdsa,
            snis: Box::default(),
            certified: bare,
            stapled: Some(Stapled {
                certified: Arc::new(with),
                from: 1000,
                until: 2000,
                expiry_logged: AtomicBool::default(),
            }),
        };
        for (now, stapled) in [(0, false), (1000, true), (1999, true), (2000, false)] {
            assert_eq!(shown.at(now).ocsp.is_some(), stapled, "{now}");
        }
    }
}
