//! A string that cannot be printed.

use std::fmt;

/// A credential, token or password.
///
/// `Debug` prints `***`, there is no `Display` and no `Serialize`; whoever needs the value has to say so with
/// [`Secret::expose`], which a reviewer can search for. The memory is not wiped on drop: the HTTP client and
/// the signer make copies that we could not reach, and a half measure would only look safe.
#[derive(Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for a signature or a request header and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no value, as when a job says `AccessKeySecret: ""`.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_value() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "*** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
    }
}
