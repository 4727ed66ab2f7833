//! A launcher and nothing else, for processes whose `main` is not their own: tests.

fn main() {
    nanochat_sandbox::serve_if_launcher();
    eprintln!("sandbox-launcher: started by nanochat-sandbox, never by hand");
    std::process::exit(2);
}
