//! What the double says when it refuses a request, in the words of each service.

use super::request::Dialect;
use super::xml::Xml;

/// A refusal: status, code and message as the service sends them.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    message: String,
    /// OSS's finer error code, where it is documented which one it is.
    ec: Option<&'static str>,
    /// Further elements of the error document.
    fields: Vec<(&'static str, String)>,
    /// Further headers of the answer.
    pub(crate) headers: Vec<(&'static str, String)>,
}

pub(crate) type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), ec: None, fields: Vec::new(), headers: Vec::new() }
    }

    pub(crate) fn ec(mut self, ec: &'static str) -> Self {
        self.ec = Some(ec);
        self
    }

    pub(crate) fn field(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn ec_code(&self) -> Option<&'static str> {
        self.ec
    }

    pub(crate) fn no_such_key(key: &str) -> Self {
        Self::new(404, "NoSuchKey", "The specified key does not exist.").ec("0026-00000001").field("Key", key)
    }

    pub(crate) fn no_such_bucket(bucket: &str) -> Self {
        Self::new(404, "NoSuchBucket", "The specified bucket does not exist.")
            .ec("0015-00000101")
            .field("BucketName", bucket)
    }

    pub(crate) fn no_such_upload(id: &str) -> Self {
        Self::new(
            404,
            "NoSuchUpload",
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted \
             or completed.",
        )
        .field("UploadId", id)
    }

    pub(crate) fn invalid_argument(name: &str, value: &str, message: impl Into<String>) -> Self {
        Self::new(400, "InvalidArgument", message).field("ArgumentName", name).field("ArgumentValue", value)
    }

    pub(crate) fn access_denied(message: impl Into<String>) -> Self {
        Self::new(403, "AccessDenied", message)
    }

    pub(crate) fn malformed_xml() -> Self {
        Self::new(
            400,
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema.",
        )
    }

    pub(crate) fn precondition_failed(condition: &str) -> Self {
        Self::new(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
            .field("Condition", condition)
    }

    pub(crate) fn not_implemented(what: &str) -> Self {
        Self::new(
            501,
            "NotImplemented",
            format!("A header or query you provided implies functionality that is not implemented: {what}"),
        )
    }

    /// The error document.
    pub(crate) fn document(&self, dialect: Dialect, host: &str, request_id: &str) -> Vec<u8> {
        let mut xml = Xml::new();
        xml.element("Error", |xml| {
            xml.text("Code", self.code);
            xml.text("Message", &self.message);
            for (name, value) in &self.fields {
                xml.text(name, value);
            }
            xml.text("RequestId", request_id);
            xml.text("HostId", if dialect == Dialect::Oss { host } else { "ZG91YmxlIG9mIGEgc3RvcmU=" });
            if let (Dialect::Oss, Some(ec)) = (dialect, self.ec) {
                xml.text("EC", ec);
                xml.text("RecommendDoc", &format!("https://api.aliyun.com/troubleshoot?q={ec}"));
            }
        });
        xml.finish()
    }
}
