//! Certificates in PEM: chains, and the authorities that are trusted.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject as _, SectionKind};

/// The most authorities.
const MAX_AUTHORITIES: usize = 1000;

/// All certificates of a PEM text, at least one.
pub(crate) fn parse_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut chain = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
        match section.map_err(|error| format!("is not PEM: {error}"))? {
            (SectionKind::Certificate, der) => chain.push(CertificateDer::from(der)),
            (SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey, _) => {
                return Err("holds a private key, which would be readable here".to_owned());
            }
            _ => return Err("holds something else than certificates".to_owned()),
        }
    }
    match chain.len() {
        0 => Err("has no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()),
        _ => Ok(chain),
    }
}

/// The certificates of the authorities that are trusted, at least one.
pub(crate) fn parse_authorities(pem: &str) -> Result<Box<[CertificateDer<'static>]>, String> {
    let certificates = parse_certificates(pem)?;
    if certificates.len() > MAX_AUTHORITIES {
        return Err(format!("has {} certificates; at most {MAX_AUTHORITIES}", certificates.len()));
    }
    for (index, certificate) in certificates.iter().enumerate() {
        rustls::RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|error| format!("its certificate {} cannot be trusted: {error}", index + 1))?;
    }
    Ok(certificates.into())
}
