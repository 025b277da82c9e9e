//! Signatures, clocks and tokens.

use std::time::{Duration, SystemTime};

use super::super::checksum::Checksum;
use super::super::time::iso;
use super::*;

#[test]
fn a_good_oss_signature_is_accepted_in_every_form() {
    let double = started();
    let get = Draft::new("GET", TARGET);
    assert_eq!(send(&double, &get.clone().oss(&Signer::default())).body, b"hello");
    let more = Signer { additional: "host;range".into(), ..Signer::default() };
    assert_eq!(send(&double, &get.clone().header("range", "bytes=1-2").oss(&more)).body, b"el");
    let hosted = Signer { bucket_in_host: true, additional: "host".into(), ..Signer::default() };
    for host in [
        "test-bucket.localhost",
        "test-bucket.oss-cn-test.aliyuncs.com",
        "test-bucket.oss-cn-test-internal.aliyuncs.com:80",
    ] {
        let answer = send(&double, &Draft::new("GET", "/a%20b").header("host", host).oss(&hosted));
        assert_eq!(answer.body, b"hello", "{host} {}", answer.text());
    }
    // The canonical spelling counts, and not the one that was sent.
    let mut spelled = get.oss(&Signer::default());
    spelled.target = "/test-bucket/%61%20b".into();
    assert_eq!(send(&double, &spelled).body, b"hello");
}

#[test]
fn every_flaw_of_an_oss_signature_is_found() {
    let double = started();
    let base = Draft::new("PUT", "/test-bucket/new?x=1").header("content-type", "text/plain").body("text");
    let signer = Signer { additional: "host".into(), ..Signer::default() };
    let good = base.clone().oss(&signer);
    assert_eq!(send(&double, &good).status, 200);
    double.delete("test-bucket", "new");

    let authorization =
        |change: &dyn Fn(&str) -> String| good.clone().header("authorization", &change(good.value("authorization")));
    let changed = |change: &dyn Fn(&mut Draft)| {
        let mut draft = good.clone();
        change(&mut draft);
        draft
    };
    let resigned = |change: &dyn Fn(&mut Signer)| {
        let mut how = signer.clone();
        change(&mut how);
        base.clone().oss(&how)
    };
    let hour = Duration::from_secs(3600);
    let quarter = Duration::from_secs(16 * 60);
    for (flaw, draft, status, code) in [
        ("another method", changed(&|draft| draft.method = "DELETE".into()), 403, "SignatureDoesNotMatch"),
        ("another key", changed(&|draft| draft.target = "/test-bucket/old?x=1".into()), 403, "SignatureDoesNotMatch"),
        ("another query", changed(&|draft| draft.target = "/test-bucket/new?x=2".into()), 403, "SignatureDoesNotMatch"),
        ("one more query", changed(&|draft| draft.target.push_str("&append")), 403, "SignatureDoesNotMatch"),
        ("another type", good.clone().header("content-type", "text/html"), 403, "SignatureDoesNotMatch"),
        ("an unsigned own header", good.clone().header("x-oss-meta-a", "1"), 403, "SignatureDoesNotMatch"),
        ("another additional header", good.clone().header("host", "127.0.0.2"), 403, "SignatureDoesNotMatch"),
        (
            "a wrong signature",
            authorization(&|text| text[..text.len() - 4].to_owned() + "0000"),
            403,
            "SignatureDoesNotMatch",
        ),
        ("a wrong secret", resigned(&|how| how.secret = "other".into()), 403, "SignatureDoesNotMatch"),
        ("an unknown key", resigned(&|how| how.id = "nobody".into()), 403, "InvalidAccessKeyId"),
        ("a token that the key has not", resigned(&|how| how.token = Some("t".into())), 403, "InvalidSecurityToken"),
        ("another region", resigned(&|how| how.region = "cn-other".into()), 400, "InvalidArgument"),
        ("another product", resigned(&|how| how.product = Some("s3".into())), 400, "InvalidArgument"),
        ("another terminator", resigned(&|how| how.terminator = Some("aws4_request".into())), 400, "InvalidArgument"),
        ("another day", resigned(&|how| how.date = "20200101".into()), 400, "InvalidArgument"),
        (
            "an hour ago",
            resigned(&|how| *how = Signer { additional: "host".into(), ..Signer::at(SystemTime::now() - hour) }),
            403,
            "RequestTimeTooSkewed",
        ),
        (
            "just too late",
            resigned(&|how| *how = Signer { additional: "host".into(), ..Signer::at(SystemTime::now() + quarter) }),
            403,
            "RequestTimeTooSkewed",
        ),
        ("no date", changed(&|draft| draft.headers.retain(|(name, _)| name != "x-oss-date")), 403, "AccessDenied"),
        ("a mangled date", good.clone().header("x-oss-date", "yesterday"), 403, "AccessDenied"),
        (
            "no payload hash",
            changed(&|draft| draft.headers.retain(|(name, _)| name != "x-oss-content-sha256")),
            400,
            "InvalidArgument",
        ),
        (
            "empty additional headers",
            authorization(&|text| text.replace("AdditionalHeaders=host", "AdditionalHeaders=")),
            400,
            "InvalidArgument",
        ),
        (
            "an additional header that is not there",
            authorization(&|text| text.replace("=host", "=host;range")),
            400,
            "InvalidArgument",
        ),
        (
            "additional headers out of order",
            resigned(&|how| how.additional = "host;accept".into()),
            400,
            "InvalidArgument",
        ),
        (
            "an additional header that is signed anyway",
            resigned(&|how| how.additional = "content-type;host".into()),
            400,
            "InvalidArgument",
        ),
        (
            "no signature",
            authorization(&|text| text.split(",Signature").next().unwrap().to_owned()),
            400,
            "InvalidArgument",
        ),
        ("no credential", authorization(&|text| text.replace("Credential", "Credentials")), 400, "InvalidArgument"),
        ("no scope", authorization(&|text| text.replace("/aliyun_v4_request", "")), 400, "InvalidArgument"),
        ("an unknown scheme", authorization(&|text| text.replace("OSS4", "OSS5")), 400, "InvalidArgument"),
        (
            "no signature at all",
            changed(&|draft| draft.headers.retain(|(name, _)| name != "authorization")),
            403,
            "AccessDenied",
        ),
        ("the old signature", good.clone().header("authorization", "OSS test-key:c2ln"), 400, "InvalidArgument"),
    ] {
        let answer = send(&double, &draft);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{flaw}: {}", answer.text());
        assert_eq!(double.get("test-bucket", "new"), None, "{flaw} took effect");
    }
    let empty = send(&double, &authorization(&|text| text.replace("AdditionalHeaders=host", "AdditionalHeaders=")));
    assert!(empty.text().contains("<EC>0002-00000209</EC>"));
    assert_eq!(empty.headers["x-oss-ec"], "0002-00000209");
    assert_eq!(send(&double, &good).status, 200);
}

#[test]
fn every_flaw_of_an_s3_signature_is_found() {
    let double = started();
    let base = Draft::new("PUT", "/test-bucket/new?x=1").header("content-type", "text/plain").body("text");
    let signer = Signer::default();
    let good = base.clone().s3(&signer);
    assert_eq!(send(&double, &good).status, 200);
    double.delete("test-bucket", "new");

    let authorization =
        |change: &dyn Fn(&str) -> String| good.clone().header("authorization", &change(good.value("authorization")));
    let changed = |change: &dyn Fn(&mut Draft)| {
        let mut draft = good.clone();
        change(&mut draft);
        draft
    };
    let resigned = |change: &dyn Fn(&mut Signer)| {
        let mut how = signer.clone();
        change(&mut how);
        base.clone().s3(&how)
    };
    let hour = Duration::from_secs(3600);
    for (flaw, draft, status, code) in [
        ("another method", changed(&|draft| draft.method = "DELETE".into()), 403, "SignatureDoesNotMatch"),
        ("another key", changed(&|draft| draft.target = "/test-bucket/old?x=1".into()), 403, "SignatureDoesNotMatch"),
        ("another query", changed(&|draft| draft.target = "/test-bucket/new?x=2".into()), 403, "SignatureDoesNotMatch"),
        ("another host", good.clone().header("host", "127.0.0.2"), 403, "SignatureDoesNotMatch"),
        ("another signed header", good.clone().header("content-type", "text/html"), 403, "SignatureDoesNotMatch"),
        ("an unsigned own header", good.clone().header("x-amz-meta-a", "1"), 403, "AccessDenied"),
        (
            "a wrong signature",
            authorization(&|text| text[..text.len() - 4].to_owned() + "0000"),
            403,
            "SignatureDoesNotMatch",
        ),
        ("a wrong secret", resigned(&|how| how.secret = "other".into()), 403, "SignatureDoesNotMatch"),
        ("an unknown key", resigned(&|how| how.id = "nobody".into()), 403, "InvalidAccessKeyId"),
        ("a token that the key has not", resigned(&|how| how.token = Some("t".into())), 400, "InvalidToken"),
        ("another region", resigned(&|how| how.region = "cn-other".into()), 400, "AuthorizationHeaderMalformed"),
        ("another service", resigned(&|how| how.product = Some("oss".into())), 400, "AuthorizationHeaderMalformed"),
        ("another day", resigned(&|how| how.date = "20200101".into()), 400, "AuthorizationHeaderMalformed"),
        ("an hour ago", resigned(&|how| *how = Signer::at(SystemTime::now() - hour)), 403, "RequestTimeTooSkewed"),
        ("no date", changed(&|draft| draft.headers.retain(|(name, _)| name != "x-amz-date")), 403, "AccessDenied"),
        ("another body", good.clone().body("tex_"), 400, "XAmzContentSHA256Mismatch"),
        (
            "another payload hash",
            good.clone().header("x-amz-content-sha256", &"0".repeat(64)),
            403,
            "SignatureDoesNotMatch",
        ),
        (
            "no payload hash",
            changed(&|draft| draft.headers.retain(|(name, _)| name != "x-amz-content-sha256")),
            400,
            "InvalidRequest",
        ),
        (
            "signed headers out of order",
            authorization(&|text| text.replace("content-type;host", "host;content-type")),
            400,
            "AuthorizationHeaderMalformed",
        ),
        ("the host is not signed", authorization(&|text| text.replace("host;", "")), 403, "AccessDenied"),
        (
            "no signature at all",
            changed(&|draft| draft.headers.retain(|(name, _)| name != "authorization")),
            403,
            "AccessDenied",
        ),
    ] {
        let answer = send(&double, &draft);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{flaw}: {}", answer.text());
        assert_eq!(double.get("test-bucket", "new"), None, "{flaw} took effect");
    }
    let region = send(&double, &resigned(&|how| how.region = "cn-other".into()));
    assert!(region.text().contains("<Region>cn-test</Region>"));
    let unsigned = base.header("x-amz-content-sha256", "UNSIGNED-PAYLOAD").s3(&signer);
    assert_eq!(send(&double, &unsigned).status, 200);
}

#[test]
fn a_body_in_chunks_with_a_trailer_is_put_together_and_checked() {
    let double = started();
    let put = |length: &str, body: String| {
        let draft = Draft::new("PUT", "/test-bucket/chunked")
            .header("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
            .header("content-encoding", "aws-chunked")
            .header("x-amz-decoded-content-length", length)
            .header("x-amz-trailer", "x-amz-checksum-crc32")
            .body(body);
        send(&double, &draft.s3(&Signer::default()))
    };
    let crc = Checksum::of("crc32", &"hello world".into()).unwrap().value;
    let chunks = |crc: &str| format!("6\r\nhello \r\n5\r\nworld\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n");
    assert_eq!(put("11", chunks(&crc)).status, 200);
    let object = double.object("test-bucket", "chunked").unwrap();
    assert_eq!(object.bytes(), b"hello world");
    assert!(object.headers.iter().all(|(name, _)| name != "content-encoding"));
    assert_eq!(put("11", chunks("AAAAAA==")).code(), "BadDigest");
    assert_eq!(put("12", chunks(&crc)).code(), "IncompleteBody");
    assert_eq!(put("11", chunks(&crc).replace("5\r\n", "4\r\n")).code(), "IncompleteBody");
    assert_eq!(put("11", chunks(&crc).replace("-crc32:", "-sha256:")).code(), "MalformedTrailerError");
    assert_eq!(put("11", "b\r\nhello world\r\n".into()).code(), "IncompleteBody");
}

#[test]
fn a_clock_that_is_off_is_told_and_can_be_followed() {
    let double = started();
    for offset in [7200_i64, -7200] {
        double.set_clock_offset(offset);
        let refused = oss(&double, "GET", TARGET);
        assert_eq!((refused.status, refused.code().as_str()), (403, "RequestTimeTooSkewed"));
        let server = httpdate::parse_http_date(&refused.headers["date"]).unwrap();
        assert!(refused.text().contains(&format!("<ServerTime>{}", &iso(server)[..13])));
        let followed = Draft::new("GET", TARGET);
        assert_eq!(send(&double, &followed.clone().oss(&Signer::at(server))).body, b"hello");
        assert_eq!(send(&double, &followed.s3(&Signer::at(server))).body, b"hello");
    }
}

#[test]
fn temporary_keys_need_their_token_and_expire() {
    let hour = Duration::from_secs(3600);
    let config = DoubleConfig::default()
        .key(AccessKey::new("STS.good", "s").with_token("t", hour))
        .key(AccessKey::new("STS.old", "s").with_expired_token("t", hour));
    let double = Double::start(config);
    double.put("test-bucket", "a b", "hello");
    let with = |id: &str, token: Option<&str>| Signer {
        id: id.into(),
        secret: "s".into(),
        token: token.map(str::to_owned),
        ..Signer::default()
    };
    let draft = || Draft::new("GET", TARGET);
    for (how, in_oss, in_s3) in [
        (with("STS.good", Some("t")), (200, ""), (200, "")),
        (with("STS.good", Some("u")), (403, "InvalidSecurityToken"), (400, "InvalidToken")),
        (with("STS.good", None), (403, "InvalidAccessKeyId"), (403, "InvalidAccessKeyId")),
        (with("STS.old", Some("t")), (403, "SecurityTokenExpired"), (400, "ExpiredToken")),
    ] {
        let (oss, s3) = (send(&double, &draft().oss(&how)), send(&double, &draft().s3(&how)));
        assert_eq!((oss.status, oss.code().as_str()), in_oss);
        assert_eq!((s3.status, s3.code().as_str()), in_s3);
    }
    double.set_keys(vec![AccessKey::new("rotated", "s")]);
    assert_eq!(oss(&double, "GET", TARGET).code(), "InvalidAccessKeyId");
}
