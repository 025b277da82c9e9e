//! Where a bucket is: host, path and region, from settings and from what endpoint names tell.
//!
//! Pure: asking the metadata service for a region is up to the caller, who is told when that would help.

use std::net::IpAddr;

use http::{HeaderValue, Uri};

use crate::location::{Location, Scheme};
use crate::settings::{Addressing, StoreSettings};

/// The region that S3 servers other than Amazon's expect when none is set: their default, and their clients'.
const S3_DEFAULT_REGION: &str = "us-east-1";

/// How a bucket is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://bucket.oss-cn-hangzhou.aliyuncs.com/`, to which paths are added.
    pub base: Uri,
    /// The `Host` header.
    pub host: String,
    /// The same, ready to be sent.
    pub host_value: HeaderValue,
    /// What goes before an encoded key in the path: `/` or `/bucket/`.
    pub prefix: String,
    /// What goes before an encoded key under the signature.
    pub canonical_prefix: String,
    /// What the signature names.
    pub region: String,
    /// Whether the wire is encrypted.
    pub secure: bool,
    /// Whether this is Amazon's own S3, which has checksums that others lack.
    pub amazon: bool,
}

/// Why there is no [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// The instance's metadata may know the region; the message says what to set if it does not.
    NeedsRegion(String),
    /// The settings make no sense.
    Invalid(String),
}

/// Works out how the bucket of `root` is reached. `instance_region` is what the metadata service said, if it was asked.
pub(crate) fn resolve(
    root: &Location,
    settings: &StoreSettings,
    instance_region: Option<&str>,
) -> Result<Endpoint, Unresolved> {
    let scheme = root.scheme();
    let bucket = root.bucket();
    let set_region = settings.region.as_deref().map(|region| {
        // The console shows OSS regions as `oss-cn-hangzhou`.
        if scheme == Scheme::Oss { region.strip_prefix("oss-").unwrap_or(region) } else { region }
    });
    if let Some(region) = set_region.filter(|region| !is_region(region)) {
        return Err(Unresolved::Invalid(format!("{region:?} is no region: write one like cn-hangzhou or us-east-1")));
    }
    let (mut server, derived) = match (&settings.endpoint, set_region, instance_region) {
        (Some(text), _, _) => (Server::parse(text).map_err(Unresolved::Invalid)?, false),
        (None, Some(region), _) => (Server::of_region(scheme, region, false), true),
        // In that region ourselves, we can use its internal name, which costs no traffic and needs no way out.
        (None, None, Some(region)) => (Server::of_region(scheme, region, true), true),
        (None, None, None) => {
            let (option, variable) = if scheme == Scheme::Oss {
                ("an endpoint (--endpoint, OSS_ENDPOINT) or a region (--region, OSS_REGION)", "cn-hangzhou")
            } else {
                ("an endpoint (--endpoint, AWS_ENDPOINT_URL_S3) or a region (--region, AWS_REGION)", "us-east-1")
            };
            return Err(Unresolved::NeedsRegion(format!(
                "neither endpoint nor region is known: set {option}, such as {variable}"
            )));
        }
    };
    // Endpoints are often copied with the bucket in front, as the consoles show them.
    if !derived
        && let Some(rest) = server.name.strip_prefix(&format!("{bucket}."))
        && region_of(rest).is_some()
    {
        server.name = rest.to_owned();
    }
    let known = set_region.map(str::to_owned).or_else(|| region_of(&server.name));
    let region = match (known, instance_region) {
        (Some(region), _) => region,
        (None, Some(region)) if scheme == Scheme::Oss => region.to_owned(),
        (None, _) if scheme == Scheme::S3 => S3_DEFAULT_REGION.to_owned(),
        (None, _) => {
            return Err(Unresolved::NeedsRegion(format!(
                "the signature needs the bucket's region and the endpoint {} does not tell it: set --region or OSS_REGION, \
                 such as cn-hangzhou",
                server.name
            )));
        }
    };

    let is_ip = server.name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let path_style = match settings.addressing {
        Addressing::Path => true,
        Addressing::VirtualHosted if is_ip => {
            return Err(Unresolved::Invalid(format!(
                "{} is an IP address and cannot carry the bucket in its name: use path addressing",
                server.name
            )));
        }
        Addressing::VirtualHosted => false,
        Addressing::Auto => {
            // A wildcard certificate covers one label; without TLS any host name will do.
            let fits = if server.secure { is_host_label(bucket) } else { is_host_name(bucket) };
            is_ip || (scheme == Scheme::S3 && (!server.name.contains('.') || !fits))
        }
    };
    let amazon = scheme == Scheme::S3 && is_amazon(&server.name);
    let name = if path_style { server.name } else { format!("{bucket}.{}", server.name) };
    let host = match server.port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    };
    let impossible = || Unresolved::Invalid(format!("{host:?} is no host that can be asked: use path addressing"));
    let base = format!("{}://{host}/", if server.secure { "https" } else { "http" });
    let base = base.parse::<Uri>().map_err(|_| impossible())?;
    let host_value = HeaderValue::from_str(&host).map_err(|_| impossible())?;
    let prefix = if path_style { format!("/{bucket}/") } else { "/".to_owned() };
    let canonical_prefix = if scheme == Scheme::Oss { format!("/{bucket}/") } else { prefix.clone() };
    Ok(Endpoint { base, host, host_value, prefix, canonical_prefix, region, secure: server.secure, amazon })
}

/// A server, without a bucket.
struct Server {
    name: String,
    /// Only when it is not the scheme's own.
    port: Option<u16>,
    secure: bool,
}

impl Server {
    fn parse(text: &str) -> Result<Self, String> {
        let bad =
            |why: &str| format!("{text:?} is no endpoint ({why}): write one like https://oss-cn-hangzhou.aliyuncs.com");
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: Uri = full.parse().map_err(|_| bad("it is no URL"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("only http:// and https:// are known")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            // Not quoted: what is before the @ is a password.
            return Err(
                "the endpoint holds a user name or password: give credentials by the settings for them".to_owned()
            );
        }
        if !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
            return Err(bad("it has a path"));
        }
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        if name.is_empty() {
            return Err(bad("it names no host"));
        }
        let standard = if secure { 443 } else { 80 };
        Ok(Self { name, port: authority.port_u16().filter(|port| *port != standard), secure })
    }

    fn of_region(scheme: Scheme, region: &str, internal: bool) -> Self {
        let name = match (scheme, internal) {
            (Scheme::Oss, false) => format!("oss-{region}.aliyuncs.com"),
            (Scheme::Oss, true) => format!("oss-{region}-internal.aliyuncs.com"),
            _ if region.starts_with("cn-") => format!("s3.{region}.amazonaws.com.cn"),
            _ => format!("s3.{region}.amazonaws.com"),
        };
        Self { name, port: None, secure: true }
    }
}

fn is_amazon(host: &str) -> bool {
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

/// Whether an endpoint, as people write it, has a region in its name.
pub(crate) fn tells_region(endpoint: &str) -> bool {
    Server::parse(endpoint).is_ok_and(|server| region_of(&server.name).is_some())
}

/// The region in the name of one of the vendors' endpoints.
pub(crate) fn region_of(host: &str) -> Option<String> {
    let host = host.trim_end_matches('.');
    let found = if let Some(rest) = host.strip_suffix(".aliyuncs.com") {
        // `oss-R`, `oss-R-internal`, `s3.oss-R`, `vpc100-oss-R`, and for both IP versions `R.oss`.
        let label = match rest.strip_suffix(".oss") {
            Some(label) => label,
            None => {
                let last = rest.rsplit('.').next().unwrap_or(rest);
                last.strip_prefix("vpc100-").unwrap_or(last).strip_prefix("oss-")?
            }
        };
        let label = label.rsplit('.').next().unwrap_or(label);
        let region = label.strip_suffix("-internal").unwrap_or(label);
        (!region.starts_with("accelerate")).then_some(region)
    } else if is_amazon(host) {
        let rest = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".amazonaws.com")?;
        // An interface endpoint in a private network: `bucket.vpce-1a2b.s3.R.vpce`.
        let rest = rest.strip_suffix(".vpce").unwrap_or(rest);
        let last = rest.rsplit('.').next().unwrap_or(rest);
        match last {
            "s3" => Some("us-east-1"),
            "s3-accelerate" | "dualstack" => None,
            _ => Some(last.strip_prefix("s3-fips-").or_else(|| last.strip_prefix("s3-")).unwrap_or(last)),
        }
    } else if host == "s3.amazonaws.com" {
        Some("us-east-1")
    } else {
        None
    };
    found.filter(|region| is_region(region)).map(str::to_owned)
}

fn is_region(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Whether a bucket can be one label of a host name, under which a wildcard certificate is good.
fn is_host_label(bucket: &str) -> bool {
    (1..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !bucket.starts_with('-')
        && !bucket.ends_with('-')
}

fn is_host_name(bucket: &str) -> bool {
    bucket.split('.').all(is_host_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(root: &str, endpoint: &str, region: &str, addressing: Addressing) -> Result<Endpoint, Unresolved> {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let settings =
            StoreSettings { endpoint: some(endpoint), region: some(region), addressing, ..StoreSettings::default() };
        resolve(&root.parse().unwrap(), &settings, None)
    }

    fn auto(root: &str, endpoint: &str, region: &str) -> (String, String, String, String) {
        let found = at(root, endpoint, region, Addressing::Auto).unwrap();
        (base(&found), found.prefix, found.canonical_prefix, found.region)
    }

    fn base(found: &Endpoint) -> String {
        assert_eq!(found.host_value, found.host);
        found.base.to_string().strip_suffix('/').unwrap().to_owned()
    }

    fn is(base: &str, prefix: &str, canonical: &str, region: &str) -> (String, String, String, String) {
        (base.into(), prefix.into(), canonical.into(), region.into())
    }

    #[test]
    fn endpoints_regions_and_addressing() {
        let hz = "https://b.oss-cn-hangzhou.aliyuncs.com";
        assert_eq!(auto("oss://b", "", "cn-hangzhou"), is(hz, "/", "/b/", "cn-hangzhou"));
        assert_eq!(auto("oss://b", "", "oss-cn-hangzhou"), is(hz, "/", "/b/", "cn-hangzhou"));
        assert_eq!(auto("oss://b", "oss-cn-hangzhou.aliyuncs.com", ""), is(hz, "/", "/b/", "cn-hangzhou"));
        assert_eq!(auto("oss://b", "https://b.oss-cn-hangzhou.aliyuncs.com/", ""), is(hz, "/", "/b/", "cn-hangzhou"));
        assert_eq!(
            auto("oss://b", "http://oss-cn-beijing-internal.aliyuncs.com", ""),
            is("http://b.oss-cn-beijing-internal.aliyuncs.com", "/", "/b/", "cn-beijing")
        );
        assert_eq!(auto("oss://b", "http://localhost:9000", "x"), is("http://b.localhost:9000", "/", "/b/", "x"));
        assert_eq!(auto("oss://b", "http://127.0.0.1:9000", "x"), is("http://127.0.0.1:9000", "/b/", "/b/", "x"));
        assert_eq!(auto("s3://b", "http://localhost:9000", ""), is("http://localhost:9000", "/b/", "/b/", "us-east-1"));
        assert_eq!(auto("s3://b", "http://[::1]:9", ""), is("http://[::1]:9", "/b/", "/b/", "us-east-1"));
        assert_eq!(auto("s3://b", "", "eu-west-1"), is("https://b.s3.eu-west-1.amazonaws.com", "/", "/", "eu-west-1"));
        assert_eq!(
            auto("s3://b", "", "cn-north-1"),
            is("https://b.s3.cn-north-1.amazonaws.com.cn", "/", "/", "cn-north-1")
        );
        let dotted = auto("s3://my.bucket", "", "eu-west-1");
        assert_eq!(dotted, is("https://s3.eu-west-1.amazonaws.com", "/my.bucket/", "/my.bucket/", "eu-west-1"));
        assert_eq!(
            auto("s3://b", "https://s3.oss-cn-hangzhou-internal.aliyuncs.com:443", ""),
            is("https://b.s3.oss-cn-hangzhou-internal.aliyuncs.com", "/", "/", "cn-hangzhou")
        );
        let path = at("oss://b", "http://localhost:1", "x", Addressing::Path).unwrap();
        assert_eq!((path.host.as_str(), path.prefix.as_str()), ("localhost:1", "/b/"));
        assert!(at("s3://b", "", "us-west-2", Addressing::Auto).unwrap().amazon);
    }

    #[test]
    fn an_instance_s_region_gives_the_internal_endpoint_and_never_overrules() {
        let settings = StoreSettings::default();
        let root: Location = "oss://b".parse().unwrap();
        let found = resolve(&root, &settings, Some("cn-shenzhen")).unwrap();
        assert_eq!(base(&found), "https://b.oss-cn-shenzhen-internal.aliyuncs.com");
        let settings = StoreSettings { region: Some("cn-beijing".into()), ..StoreSettings::default() };
        assert_eq!(resolve(&root, &settings, Some("cn-shenzhen")).unwrap().region, "cn-beijing");
        let settings = StoreSettings { endpoint: Some("http://10.0.0.1".into()), ..StoreSettings::default() };
        assert_eq!(resolve(&root, &settings, Some("cn-shenzhen")).unwrap().region, "cn-shenzhen");
    }

    #[test]
    fn regions_in_names() {
        for (host, region) in [
            ("oss-cn-hangzhou.aliyuncs.com", Some("cn-hangzhou")),
            ("vpc100-oss-cn-beijing.aliyuncs.com", Some("cn-beijing")),
            ("cn-hangzhou.oss.aliyuncs.com", Some("cn-hangzhou")),
            ("oss-accelerate.aliyuncs.com", None),
            ("s3.amazonaws.com", Some("us-east-1")),
            ("s3.dualstack.eu-west-3.amazonaws.com", Some("eu-west-3")),
            ("s3-eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("s3-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("s3-accelerate.amazonaws.com", None),
            ("minio.example.com", None),
        ] {
            assert_eq!(region_of(host).as_deref(), region, "{host}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_remedy() {
        let invalid = |endpoint: &str| match at("oss://b", endpoint, "r", Addressing::Auto) {
            Err(Unresolved::Invalid(why)) => why,
            other => panic!("{endpoint}: {other:?}"),
        };
        assert!(invalid("ftp://host").contains("http://"));
        assert!(invalid("https://host/path").contains("path"));
        assert!(!invalid("https://user:hunter2@host").contains("hunter2"));
        assert!(invalid("https://").contains("no URL"));
        let Err(Unresolved::NeedsRegion(why)) = at("oss://b", "http://localhost:9000", "", Addressing::Auto) else {
            panic!("a region came from nowhere");
        };
        assert!(why.contains("--region") && why.contains("OSS_REGION"), "{why}");
        assert!(matches!(at("s3://b", "", "", Addressing::Auto), Err(Unresolved::NeedsRegion(_))));
        assert!(matches!(
            at("oss://b", "http://127.0.0.1", "r", Addressing::VirtualHosted),
            Err(Unresolved::Invalid(_))
        ));
        assert!(matches!(at("oss://b", "", "evil/..", Addressing::Auto), Err(Unresolved::Invalid(_))));
    }
}
