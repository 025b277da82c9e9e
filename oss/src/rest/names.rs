//! Names of headers that every read looks at. Ready made, because a name in text is parsed each time.

use http::HeaderName;

pub(crate) static OSS_REQUEST_ID: HeaderName = HeaderName::from_static("x-oss-request-id");
pub(crate) static OSS_CRC64: HeaderName = HeaderName::from_static("x-oss-hash-crc64ecma");
pub(crate) static OSS_STORAGE_CLASS: HeaderName = HeaderName::from_static("x-oss-storage-class");
pub(crate) static OSS_RESTORE: HeaderName = HeaderName::from_static("x-oss-restore");
pub(crate) static OSS_RANGE_BEHAVIOR: HeaderName = HeaderName::from_static("x-oss-range-behavior");
pub(crate) static S3_REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
pub(crate) static S3_CRC64_NVME: HeaderName = HeaderName::from_static("x-amz-checksum-crc64nvme");
pub(crate) static S3_CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
pub(crate) static S3_CHECKSUM_TYPE: HeaderName = HeaderName::from_static("x-amz-checksum-type");
pub(crate) static S3_STORAGE_CLASS: HeaderName = HeaderName::from_static("x-amz-storage-class");
pub(crate) static S3_RESTORE: HeaderName = HeaderName::from_static("x-amz-restore");
pub(crate) static S3_ENCRYPTION: HeaderName = HeaderName::from_static("x-amz-server-side-encryption");
pub(crate) static S3_CUSTOMER_KEY: HeaderName =
    HeaderName::from_static("x-amz-server-side-encryption-customer-algorithm");
