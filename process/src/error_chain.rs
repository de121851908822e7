use std::error::Error;
use std::fmt;

/// An error with its causes, for one line of a log. A cause whose text an error before it contains is left out: many
/// libraries repeat their causes.
#[derive(Debug, Clone, Copy)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let cause_text = error.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            cause = error.source();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {path}")]
    struct Outer {
        path: &'static str,
        #[source]
        error: io::Error,
    }

    #[test]
    fn every_cause_is_named_once() {
        let error = |error| Outer { path: "a.pem", error };
        let told = ErrorChain(&error(io::Error::other("the disk is gone"))).to_string();
        assert_eq!(told, "cannot read a.pem: the disk is gone");
        let told = ErrorChain(&error(io::Error::other("a.pem"))).to_string();
        assert_eq!(told, "cannot read a.pem");
    }
}
