//! Checks clients' certificates once more, by other authorities than the listener does.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authorities::parse_authorities;
use crate::certificate::ClientCertificate;

/// The authorities that vouch for clients, each while it is valid itself. The library that verifies chains does not look at the
/// validity of authorities; OpenSSL and what is built with it, such as nginx and Envoy, do.
pub struct ClientAuthorities {
    authorities: Box<[Authority]>,
    /// In order, from the beginning of time to its end.
    periods: Box<[Period]>,
}

struct Authority {
    certificate: CertificateDer<'static>,
    /// Seconds since 1970.
    validity: RangeInclusive<i64>,
}

/// A time in which the same authorities are valid. It ends where the next one begins.
struct Period {
    /// Seconds since 1970.
    from: i64,
    /// Made when the period is used. `None`: no authority is valid in it.
    verifier: OnceLock<Option<Arc<dyn ClientCertVerifier>>>,
}

impl ClientAuthorities {
    /// Reads the certificates of the authorities in PEM; or why they are none. The result does not depend on the time: authorities that
    /// are not valid now are accepted.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let authorities: Box<[Authority]> =
            parse_authorities(pem)?.into_vec().into_iter().map(Authority::of).collect();
        let bounds = authorities.iter().map(|authority| &authority.validity);
        let mut bounds: Vec<i64> =
            bounds.flat_map(|validity| [*validity.start(), validity.end().saturating_add(1)]).collect();
        bounds.push(i64::MIN);
        bounds.sort_unstable();
        bounds.dedup();
        let periods = bounds.into_iter().map(|from| Period { from, verifier: OnceLock::new() });
        Ok(Self { periods: periods.collect(), authorities })
    }

    /// Says why a certificate in PEM is not one of an authority, if one is not: its owner could issue others. A text that
    /// [`Self::from_pem`] refuses has none.
    pub fn check(pem: &str) -> Result<(), String> {
        for (index, certificate) in parse_authorities(pem).iter().flatten().enumerate() {
            check_authority(certificate)
                .map_err(|reason| format!("its certificate {} {reason}", index + 1))?;
        }
        Ok(())
    }

    /// True if one of the authorities has issued the certificate, for a client, and both are valid at `now`, since 1970.
    pub fn vouch_for(&self, certificate: &ClientCertificate, now: Duration) -> bool {
        let Some((own, others)) = certificate.chain.split_first() else { return false };
        let verifier = self.verifier(now).as_ref();
        verifier.is_some_and(|it| it.verify_client_cert(own, others, UnixTime::since_unix_epoch(now)).is_ok())
    }

    /// The places, from 1, of the authorities that are not valid at `now`, since 1970.
    pub fn not_valid_at(&self, now: Duration) -> impl Iterator<Item = usize> {
        let authorities = self.authorities.iter().enumerate();
        let not_valid = authorities.filter(move |(_, authority)| !authority.validity.contains(&seconds(now)));
        not_valid.map(|(index, _)| index + 1)
    }

    /// The number of authorities.
    pub fn count(&self) -> usize {
        self.authorities.len()
    }

    fn verifier(&self, now: Duration) -> &Option<Arc<dyn ClientCertVerifier>> {
        let next = self.periods.partition_point(|period| period.from <= seconds(now));
        let Some(period) = self.periods.get(next.saturating_sub(1)) else { return &None };
        period.verifier.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let valid = self.authorities.iter().filter(|authority| authority.validity.contains(&period.from));
            roots.add_parsable_certificates(valid.map(|authority| authority.certificate.clone()));
            let provider = Arc::new(ring::default_provider());
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()
        })
    }
}

impl Authority {
    fn of(certificate: CertificateDer<'static>) -> Self {
        // One that this parser cannot read is left to the library that verifies chains.
        let validity = X509Certificate::from_der(&certificate).map_or(i64::MIN..=i64::MAX, |(_, parsed)| {
            let validity = parsed.validity();
            validity.not_before.timestamp()..=validity.not_after.timestamp()
        });
        Self { certificate, validity }
    }
}

/// Says why a certificate is not one of an authority: RFC 5280, sections 4.2.1.3 and 4.2.1.9.
fn check_authority(certificate: &CertificateDer<'_>) -> Result<(), &'static str> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "is not X.509")?;
    if !parsed.is_ca() {
        return Err("is not one of an authority: it has no basicConstraints with CA:TRUE");
    }
    let usage = parsed.key_usage().map_err(|_| "has a keyUsage that cannot be read")?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("is not one of an authority: its keyUsage has no keyCertSign");
    }
    Ok(())
}

fn seconds(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuthorities")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
    };

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    /// An authority that is valid from the beginning of one year to the beginning of another.
    fn authority(name: &str, years: (i32, i32), change: impl FnOnce(&mut CertificateParams)) -> Issuer {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        change(&mut params);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client_of(issuer: &Issuer) -> ClientCertificate {
        let params = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap();
        ClientCertificate::read(&[certificate.der().clone()]).unwrap()
    }

    fn in_year(year: i32) -> Duration {
        Duration::from_secs(date_time_ymd(year, 7, 1).unix_timestamp().unsigned_abs())
    }

    #[test]
    fn certificates_of_others_are_no_authorities() {
        let good = authority("good", (2020, 2030), |_| {});
        let usages = |usages: &[KeyUsagePurpose]| {
            let usages = usages.to_vec();
            authority("usages", (2020, 2030), |params| params.key_usages = usages)
        };
        for (other, error) in [
            (authority("leaf", (2020, 2030), |params| params.is_ca = IsCa::NoCa), "no basicConstraints"),
            (
                authority("leaf", (2020, 2030), |params| params.is_ca = IsCa::ExplicitNoCa),
                "no basicConstraints",
            ),
            (usages(&[KeyUsagePurpose::DigitalSignature]), "no keyCertSign"),
            (usages(&[KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign]), ""),
        ] {
            let pem = format!("{}{}", good.as_ref().pem(), other.as_ref().pem());
            let message = ClientAuthorities::check(&pem).err().unwrap_or_default();
            assert_eq!(ClientAuthorities::from_pem(&pem).unwrap().count(), 2, "stored ones keep working");
            assert!(message.contains(error) && message.is_empty() == error.is_empty(), "{message}");
            assert!(error.is_empty() || message.starts_with("its certificate 2 is not one of an authority"));
        }
    }

    #[test]
    fn an_authority_vouches_for_nobody_before_and_after_its_time() {
        let [old, new] = [("old", (2010, 2020)), ("new", (2015, 2025))]
            .map(|(name, years)| authority(name, years, |_| {}));
        let both = format!("{}{}", old.as_ref().pem(), new.as_ref().pem());
        let both = ClientAuthorities::from_pem(&both).unwrap();
        assert_eq!(both.count(), 2);
        for (year, expected, not_valid) in [
            (2009, [false, false], &[1, 2][..]),
            (2012, [true, false], &[2]),
            (2017, [true, true], &[]),
            (2022, [false, true], &[1]),
            (2026, [false, false], &[1, 2]),
        ] {
            let found = [&old, &new].map(|issuer| both.vouch_for(&client_of(issuer), in_year(year)));
            assert_eq!(found, expected, "{year}");
            assert_eq!(both.not_valid_at(in_year(year)).collect::<Vec<_>>(), not_valid, "{year}");
        }
    }
}
