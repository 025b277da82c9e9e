//! What the credential providers of `reqsign` need from the system: environment, files, commands, HTTP.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use reqsign_core::{CommandExecute, CommandOutput, Context, Env, Error, FileRead, HttpSend, Result};
use tokio::io::AsyncReadExt;

use crate::http::{HttpClient, collect};

/// The longest credential file or answer that is read, in bytes.
const LIMIT: usize = 1 << 20;

/// For a connection to a service that hands out credentials.
const CONNECT: Duration = Duration::from_secs(5);

/// For its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// For a `credential_process` of an AWS profile, which may ask a token server.
const COMMAND: Duration = Duration::from_secs(60);

pub(super) fn context(env: impl Env) -> Context {
    Context::new()
        .with_env(env)
        .with_file_read(Files)
        .with_command_execute(Commands)
        .with_http_send(Sender { proxied: HttpClient::new(CONNECT), direct: HttpClient::direct(CONNECT) })
}

/// The process's environment. The home directory is `$HOME` alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, key: &str) -> Option<String> {
        std::env::var(key).ok()
    }

    fn vars(&self) -> HashMap<String, String> {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    fn home_dir(&self) -> Option<PathBuf> {
        std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
    }
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> Result<Vec<u8>> {
        let unreadable = |error: std::io::Error| Error::config_invalid(format!("cannot read {path}: {error}"));
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(LIMIT as u64).read_to_end(&mut bytes).await.map_err(unreadable)?;
        Ok(bytes)
    }
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute<'a>(&'a self, program: &'a str, args: &'a [&'a str]) -> Result<CommandOutput> {
        let run = tokio::process::Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
        match tokio::time::timeout(COMMAND, run).await {
            Ok(Ok(output)) => Ok(CommandOutput {
                status: output.status.code().unwrap_or(-1),
                stdout: output.stdout,
                stderr: output.stderr,
            }),
            Ok(Err(error)) => {
                Err(Error::config_invalid(format!("cannot run the credential process {program}: {error}")))
            }
            Err(_) => {
                Err(Error::unexpected(format!("the credential process {program} took over {} s", COMMAND.as_secs())))
            }
        }
    }
}

/// Sends through the environment's proxy, but to this machine and its own network segment directly: metadata and container
/// credential services live there, and a proxy would ask its own.
#[derive(Debug)]
struct Sender {
    proxied: HttpClient,
    direct: HttpClient,
}

impl HttpSend for Sender {
    async fn http_send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>> {
        let client = if is_local(request.uri().host().unwrap_or_default()) { &self.direct } else { &self.proxied };
        let host = request.uri().host().unwrap_or_default().to_owned();
        let failed = |error| Error::unexpected(format!("{host}: {error}")).set_retryable(true);
        let response = client.send(request, ANSWER, None).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let body = collect(body, LIMIT, ANSWER).await.map_err(failed)?;
        Ok(http::Response::from_parts(head, body))
    }
}

fn is_local(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip == Ipv4Addr::new(100, 100, 100, 200),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unique_local(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_addresses_are_local() {
        for host in ["169.254.169.254", "169.254.170.2", "100.100.100.200", "127.0.0.1", "[fd00:ec2::254]", "localhost"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in ["sts.aliyuncs.com", "10.0.0.1", "[2001:db8::1]"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[tokio::test]
    async fn a_command_and_a_file_are_read() {
        let context = context(ProcessEnv);
        let output = context.command_execute("/bin/sh", &["-c", "echo $0; exit 3", "x"]).await.unwrap();
        assert_eq!((output.status, output.stdout.as_slice()), (3, b"x\n".as_slice()));
        assert!(context.file_read("/proc/self/cmdline").await.is_ok());
        assert!(context.file_read("/nonexistent/file").await.is_err());
    }
}
