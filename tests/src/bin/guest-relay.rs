//! What a virtual machine's network calls when the machine opens a connection to an address of a double: copies between its
//! standard input and output and a port of 127.0.0.1. One process per connection, and gone with it.
//!
//! ```text
//! guest-relay 8080
//! ```

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("usage: guest-relay PORT");
        return ExitCode::FAILURE;
    };
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(relay) {
        Ok(()) => ExitCode::SUCCESS,
        // The machine sees a connection that was closed, as it would if the server were gone.
        Err(_) => ExitCode::FAILURE,
    }
}

fn relay(server: TcpStream) -> io::Result<()> {
    server.set_nodelay(true)?;
    let to_server = server.try_clone()?;
    thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut &to_server);
        // The machine will send no more; the server's answer may still be on its way.
        let _ = to_server.shutdown(Shutdown::Write);
    });
    // When the server has said everything, the connection is over whatever the machine thinks.
    copy(&mut &server, &mut io::stdout().lock())
}

/// Copies what comes as it comes: `io::copy` would wait for a line in the buffer of standard output.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}
