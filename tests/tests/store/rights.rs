//! Who may do what, by which credentials, and what a refusal says.

use std::time::Duration;

use bytes::Bytes;
use oss::{CredentialSource, ErrorKind, Key, ListRequest, Location, Scheme, Settings, StoreSettings, Stores};
use tests::double::{AccessKey, Action, Double, DoubleConfig};
use tests::imds::Imds;

use super::{BUCKET, FOREVER, SCHEMES, no_hang, open, read, read_range, secret, settings, store};

#[tokio::test]
async fn refusals_say_what_they_are() {
    for scheme in SCHEMES {
        let config = DoubleConfig::default()
            .bucket("elsewhere", "cn-other")
            .key(AccessKey::new("limited", "s").deny(Action::Read, "private/").deny(Action::List, ""))
            .key(AccessKey::new("STS.old", "s").with_expired_token("tok", Duration::from_secs(10)))
            .key(AccessKey::new("STS.new", "s").with_token("tok", Duration::from_secs(600)));
        let double = Double::start(config);
        double.put(BUCKET, "private/x", "1");
        double.put(BUCKET, "cold", "1");
        double.set_archived(BUCKET, "cold", true);
        let with = |credentials: CredentialSource| {
            let mut settings = settings(&double.endpoint());
            settings.credentials = credentials;
            open(scheme, settings)
        };
        let kind = |outcome: oss::Result<Bytes>| outcome.unwrap_err().kind().clone();
        let good = store(scheme, &double);

        assert_eq!(kind(read(&good, "nothing").await), ErrorKind::NotFound);
        assert_eq!(*good.head(&Key::from("nothing")).await.unwrap_err().kind(), ErrorKind::NotFound);
        let limited = with(secret("limited", "s", None));
        assert_eq!(kind(read(&limited, "private/x").await), ErrorKind::Denied);
        assert_eq!(*limited.head(&Key::from("private/x")).await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(*limited.list(ListRequest::default()).await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(kind(read(&with(secret("nobody", "s", None)), "cold").await), ErrorKind::BadCredentials);
        assert_eq!(kind(read(&with(secret("test-key", "wrong", None)), "cold").await), ErrorKind::BadCredentials);
        assert_eq!(kind(read(&with(secret("STS.old", "s", Some("tok"))), "cold").await), ErrorKind::BadCredentials);
        assert_eq!(kind(read(&with(CredentialSource::Anonymous), "private/x").await), ErrorKind::Denied);
        assert_eq!(with(secret("STS.new", "s", Some("tok"))).head(&Key::from("private/x")).await.unwrap().size, 1);

        let cold = read(&good, "cold").await.unwrap_err();
        assert_eq!(*cold.kind(), ErrorKind::Archived);
        assert!(cold.to_string().contains("restore"), "{cold}");
        assert!(good.head(&Key::from("cold")).await.unwrap().archived);
        let listed = good.list(ListRequest::default()).await.unwrap().objects;
        assert_eq!(listed.iter().map(|o| o.archived).collect::<Vec<_>>(), [true, false]);

        assert_eq!(kind(read_range(&good, "private/x", 5..6).await), ErrorKind::Invalid);

        let all = Settings { oss: settings(&double.endpoint()), s3: settings(&double.endpoint()) };
        let stores = Stores::new(all);
        let missing = stores.open(&Location::new(scheme, "missing", "").unwrap()).unwrap();
        assert_eq!(*missing.list(ListRequest::default()).await.unwrap_err().kind(), ErrorKind::NoSuchBucket);
        assert_eq!(*missing.head(&Key::from("x")).await.unwrap_err().kind(), ErrorKind::NoSuchBucket);
        let elsewhere = stores.open(&Location::new(scheme, "elsewhere", "").unwrap()).unwrap();
        let error = elsewhere.list(ListRequest::default()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WrongRegion { .. }), "{error}");
        assert!(error.to_string().contains("--region"), "{error}");
        let error = elsewhere.head(&Key::from("x")).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WrongRegion { .. } | ErrorKind::Denied), "{error}");
        for error in [cold.to_string(), error.to_string()] {
            assert!(!error.contains("test-secret") && error.lines().count() == 1, "{error}");
        }
    }
}

/// Settings that leave credentials, and on OSS the region, to the instance's metadata.
fn instance_settings(double: &Double, imds: &Imds) -> StoreSettings {
    let mut settings = settings(&double.endpoint());
    settings.credentials = CredentialSource::Automatic;
    settings.metadata_endpoint = Some(imds.endpoint());
    settings
}

/// The search for credentials begins in the environment; a test of the instance's role means something only where that is
/// empty.
fn assert_no_credentials_around() {
    for name in ["OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"] {
        assert!(std::env::var_os(name).is_none(), "unset {name} to run this test");
    }
}

#[tokio::test]
async fn an_instance_role_is_used_and_replaced_when_the_store_refuses_it() {
    assert_no_credentials_around();
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let imds = if scheme == Scheme::Oss { Imds::aliyun() } else { Imds::aws() };
        let hour = Duration::from_secs(3600);
        let old = AccessKey::new("STS.old", "s1").with_token("t1", hour);
        let new = AccessKey::new("STS.new", "s2").with_token("t2", hour);
        imds.set_role("my-role", &old);
        double.set_keys(vec![old]);
        double.put(BUCKET, "k", "v");
        let mut settings = instance_settings(&double, &imds);
        if scheme == Scheme::Oss {
            settings.region = None;
        }
        let store = open(scheme, settings);
        assert_eq!(read(&store, "k").await.unwrap(), "v");
        let asked = imds.requests().len();
        assert_eq!(read(&store, "k").await.unwrap(), "v");
        assert_eq!(imds.requests().len(), asked, "credentials are kept");

        // Rotated before their time. A refused HEAD of OSS says why in a header; one of S3 cannot, and is believed only
        // when the credentials are older than these.
        double.set_keys(vec![new.clone()]);
        imds.set_role("my-role", &new);
        imds.expire_tokens();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        if scheme == Scheme::Oss {
            assert_eq!(store.head(&Key::from("k")).await.unwrap().size, 1);
        }
        assert_eq!(read(&store, "k").await.unwrap(), "v");

        // Gone altogether: an error, at once, that says what to do.
        double.set_keys(vec![]);
        imds.remove_role();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let error = read(&store, "k").await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::BadCredentials, "{error}");
        assert!(error.to_string().contains("RAM/IAM role"), "{error}");
        for secret in ["s1", "s2", "t1", "t2"] {
            assert!(!error.to_string().contains(&format!("\"{secret}\"")), "{error}");
        }
    }
}

#[tokio::test]
async fn a_machine_in_no_cloud_is_told_so_soon() {
    assert_no_credentials_around();
    let double = Double::start(DoubleConfig::default());
    for scheme in SCHEMES {
        let mut settings = settings(&double.endpoint());
        settings.credentials = CredentialSource::Automatic;
        // An address of the block that is reserved for documentation: nothing answers there, not even a refusal.
        settings.metadata_endpoint = Some("http://192.0.2.1".to_owned());
        // Whoever waited for the whole operation's deadline would be caught.
        settings.timeouts.total = FOREVER * 2;
        let store = open(scheme, settings);
        let error = no_hang(read(&store, "k")).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::BadCredentials, "{error}");
        assert!(error.to_string().contains("OSS_ACCESS_KEY_ID"), "{error}");
        assert!(!error.to_string().contains("attempts"), "nothing is tried twice: {error}");
    }
    let mut settings = settings(&double.endpoint());
    settings.region = None;
    settings.metadata_endpoint = Some("http://192.0.2.1".to_owned());
    let error = read(&open(Scheme::Oss, settings), "k").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("--region") && error.to_string().contains("OSS_REGION"), "{error}");
}
