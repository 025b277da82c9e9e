//! Rights, names, limits and states.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::checksum::md5_raw;
use super::*;

#[test]
fn policies_and_public_buckets() {
    let key =
        AccessKey::new("test-key", "test-secret").deny(Action::Write, "in/").deny(Action::List, "").deny_all("secret/");
    let mut config = DoubleConfig::empty().bucket("test-bucket", "cn-test").bucket("public", "cn-test").key(key);
    config.buckets[1].public_read = true;
    let double = Double::start(config);
    for (bucket, key) in [("test-bucket", "in/x"), ("test-bucket", "secret/x"), ("public", "x")] {
        double.put(bucket, key, "x");
    }
    for (method, target, oss_status, s3_status) in [
        ("GET", "/test-bucket/in/x", 200, 200),
        ("PUT", "/test-bucket/in/x", 403, 403),
        ("PUT", "/test-bucket/out/x", 200, 200),
        ("DELETE", "/test-bucket/in/x", 204, 204),
        ("GET", "/test-bucket/secret/x", 403, 403),
        ("HEAD", "/test-bucket/secret/x", 403, 403),
        ("DELETE", "/test-bucket/secret/x", 403, 403),
        ("GET", "/test-bucket/?prefix=in", 403, 403),
        // Who may not list does not learn from S3 whether a key exists.
        ("GET", "/test-bucket/none", 404, 403),
    ] {
        for (dialect, answer, status) in
            [("OSS", oss(&double, method, target), oss_status), ("S3", s3(&double, method, target), s3_status)]
        {
            assert_eq!(answer.status, status, "{dialect} {method} {target}: {}", answer.text());
            if status == 403 && method != "HEAD" {
                assert_eq!(answer.code(), "AccessDenied", "{dialect} {method} {target}");
            }
            double.put("test-bucket", "in/x", "x");
        }
    }
    for (method, target, status) in [
        ("GET", "/public/x", 200),
        ("GET", "/public", 200),
        ("PUT", "/public/x", 403),
        ("GET", "/test-bucket/in/x", 403),
        ("GET", "/no-such-bucket/x", 404),
    ] {
        assert_eq!(send(&double, &Draft::new(method, target)).status, status, "anonymous {method} {target}");
    }
}

#[test]
fn names_that_the_services_cannot_hold_are_refused() {
    let double = started();
    let long = |len: usize| format!("/test-bucket/{}", "k".repeat(len));
    assert_eq!(oss(&double, "PUT", &long(1023)).status, 200);
    assert_eq!(oss(&double, "PUT", &long(1024)).code(), "InvalidObjectName");
    assert_eq!(s3(&double, "PUT", &long(1024)).status, 200);
    assert_eq!(s3(&double, "PUT", &long(1025)).code(), "KeyTooLongError");
    for (target, code) in [
        ("/no-such-bucket/k", "NoSuchBucket"),
        ("/No_Bucket/k", "InvalidBucketName"),
        ("/ab/k", "InvalidBucketName"),
        ("/-ab-/k", "InvalidBucketName"),
        ("/test-bucket/none", "NoSuchKey"),
        ("/test-bucket/%ff", "InvalidURI"),
    ] {
        assert_eq!(oss(&double, "GET", target).code(), code, "OSS {target}");
        assert_eq!(s3(&double, "GET", target).code(), code, "S3 {target}");
    }
    assert_eq!(oss(&double, "GET", "/test-bucket/a%20b?acl").status, 501);
    assert_eq!(oss(&double, "GET", "/").status, 405);
    // A body of unknown length: OSS takes it, S3 does not; no length at all, neither does.
    let chunked = |draft: Draft| draft.header("transfer-encoding", "chunked");
    let put = Draft::new("PUT", "/test-bucket/new").body("5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(send(&double, &chunked(put.clone()).oss(&Signer::default())).status, 200);
    assert_eq!(double.get("test-bucket", "new").unwrap(), b"hello");
    let unsigned = chunked(put).header("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    assert_eq!(send(&double, &unsigned.s3(&Signer::default())).status, 501);
    let bare = Draft { bare: true, ..Draft::new("PUT", "/test-bucket/new") };
    assert_eq!(send(&double, &bare.clone().oss(&Signer::default())).code(), "MissingContentLength");
    assert_eq!(send(&double, &bare.s3(&Signer::default())).code(), "MissingContentLength");
    let head = oss(&double, "HEAD", "/test-bucket/none");
    assert_eq!((head.status, head.body.len(), head.headers["x-oss-ec"].as_str()), (404, 0, "0026-00000001"));
    assert!(head.headers.contains_key("x-oss-err"));
}

#[test]
fn a_wrong_endpoint_is_told_the_right_one() {
    let double = started();
    let hosted = Signer { bucket_in_host: true, ..Signer::default() };
    let answer =
        send(&double, &Draft::new("GET", "/k").header("host", "test-bucket.oss-cn-other.aliyuncs.com").oss(&hosted));
    assert_eq!((answer.status, answer.code().as_str()), (403, "AccessDenied"));
    assert!(answer.text().contains("<Endpoint>oss-cn-test.aliyuncs.com</Endpoint>"));
    let answer = send(
        &double,
        &Draft::new("GET", "/k").header("host", "test-bucket.s3.xx-other-1.amazonaws.com").s3(&Signer::default()),
    );
    assert_eq!((answer.status, answer.headers["x-amz-bucket-region"].as_str()), (301, "cn-test"));
    let answer = send(
        &double,
        &Draft::new("GET", "/test-bucket/k").header("host", "oss-cn-test.aliyuncs.com").oss(&Signer::default()),
    );
    assert_eq!((answer.status, answer.code().as_str()), (403, "SecondLevelDomainForbidden"));
}

#[test]
fn archived_objects_can_be_seen_and_not_read() {
    let double = started();
    assert!(double.set_archived("test-bucket", "a b", true));
    assert_eq!(oss(&double, "GET", TARGET).code(), "InvalidObjectState");
    assert_eq!(s3(&double, "GET", TARGET).code(), "InvalidObjectState");
    assert_eq!(oss(&double, "HEAD", TARGET).headers["x-oss-storage-class"], "Archive");
    assert_eq!(s3(&double, "HEAD", TARGET).headers["x-amz-storage-class"], "GLACIER");
    let copy = Draft::new("PUT", "/test-bucket/copy").header("x-oss-copy-source", TARGET).oss(&Signer::default());
    assert_eq!(send(&double, &copy).code(), "InvalidObjectState");
    assert!(double.set_archived("test-bucket", "a b", false));
    assert_eq!(oss(&double, "GET", TARGET).body, b"hello");
    assert!(!double.set_archived("test-bucket", "none", true));
}

#[test]
fn appends_stop_at_the_limit() {
    let double = Double::start(DoubleConfig { append_limit: 10, ..DoubleConfig::default() });
    let append = |position: &str, body: &str| {
        send(
            &double,
            &Draft::new("POST", &format!("/test-bucket/log?append{position}")).body(body).oss(&Signer::default()),
        )
    };
    assert_eq!(append("&position=0", "12345678").headers["x-oss-next-append-position"], "8");
    assert_eq!(append("&position=8", "901").code(), "EntityTooLarge");
    assert_eq!(append("&position=8", "90").headers["x-oss-next-append-position"], "10");
    assert_eq!(append("", "x").code(), "MissingArgument");
    for bad in ["=x", "=-1", "=%2B1", ""] {
        assert_eq!(append(&format!("&position{bad}"), "x").code(), "InvalidArgument", "{bad}");
    }
    let past = append("&position=3", "x");
    assert_eq!(
        (past.status, past.code().as_str(), past.headers["x-oss-next-append-position"].as_str()),
        (409, "PositionNotEqualToLength", "10")
    );
    assert_eq!(double.get("test-bucket", "log").unwrap(), b"1234567890");
    // S3 has no append.
    let in_s3 = Draft::new("POST", "/test-bucket/log?append=&position=10").s3(&Signer::default());
    assert_eq!(send(&double, &in_s3).status, 501);
}

#[test]
fn bulk_deletes_want_a_digest() {
    let double = started();
    let body = "<Delete><Object><Key>a b</Key></Object></Delete>";
    let delete = Draft::new("POST", "/test-bucket?delete").body(body);
    assert_eq!(send(&double, &delete.clone().s3(&Signer::default())).code(), "InvalidRequest");
    let mut slash = delete.clone();
    slash.target = "/test-bucket/?delete".into();
    assert_eq!(send(&double, &slash.clone().oss(&Signer::default())).code(), "MissingArgument");
    assert!(double.object("test-bucket", "a b").is_some());
    let md5 = STANDARD.encode(md5_raw(&body.into()));
    assert_eq!(send(&double, &slash.header("content-md5", &md5).oss(&Signer::default())).status, 200);
    assert!(double.object("test-bucket", "a b").is_none());
}

#[test]
fn an_enormous_object_is_served_in_ranges() {
    let double = started();
    let size = 100_000_000_000_u64;
    double.put("test-bucket", "huge", Content::repeating(bytes::Bytes::from_static(b"0123456789"), size));
    let head = oss(&double, "HEAD", "/test-bucket/huge");
    assert_eq!(head.headers["content-length"], size.to_string());
    let part = Draft::new("GET", "/test-bucket/huge").header("range", &format!("bytes={}-{}", size - 3, size - 1));
    assert_eq!(send(&double, &part.oss(&Signer::default())).body, b"789");
    let copy = Draft::new("PUT", "/test-bucket/copy").header("x-oss-copy-source", "/test-bucket/huge");
    assert_eq!(send(&double, &copy.oss(&Signer::default())).code(), "InvalidRequest");
}
