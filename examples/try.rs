//! try
#![allow(unsafe_code, clippy::all, reason="x")]
use outlast::*;
use std::time::*;
fn time(name: &str, mut f: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..9 { let t = Instant::now(); for _ in 0..1_000_000 { f(); } best = best.min(t.elapsed().as_nanos() as f64 / 1e6); }
    eprintln!("{name:30} {best:.2} ns");
}
fn main() -> Result<(), Error> {
    let l = Shared::anonymous(Lock::new(0u64))?;
    let s = std::sync::Mutex::new(0u64);
    let lr = &*l;
    time("std", || *std::hint::black_box(&s).lock().unwrap() += 1);
    time("lock", || *std::hint::black_box(lr).lock().unwrap() += 1);
    time("lock via shared", || *std::hint::black_box(&l).lock().unwrap() += 1);
    time("std", || *std::hint::black_box(&s).lock().unwrap() += 1);
    let t0 = Instant::now();
    let q = Shared::<Queue<u64>>::anonymous_queue(1024)?;
    eprintln!("open queue {:?}", t0.elapsed());
    time("queue push+pop", || { std::hint::black_box(&*q).try_send(1).unwrap(); std::hint::black_box(&*q).try_recv().unwrap(); });
    time("queue send+recv", || { std::hint::black_box(&*q).send(1).unwrap(); std::hint::black_box(&*q).recv().unwrap(); });
    time("queue send+recv_ack+ack", || { std::hint::black_box(&*q).send(1).unwrap(); std::hint::black_box(&*q).recv_ack().unwrap().ack().unwrap(); });
    let e = Shared::anonymous(Event::manual(false))?;
    time("event set reset", || { std::hint::black_box(&*e).set(); e.reset(); });
    let t0 = Instant::now(); drop(q); eprintln!("drop queue {:?}", t0.elapsed());
    // two processes, one killed
    let q = Shared::<Queue<u64>>::anonymous_queue(16)?;
    for i in 0..10 { q.send(i)?; }
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let d = q.recv_ack().unwrap();
        eprintln!("child got {d:?}");
        unsafe { libc::kill(libc::getpid(), 9) };
    }
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    let t0 = Instant::now();
    let mut seen = vec![];
    while seen.len() < 10 { let d = q.recv_ack_timeout(Duration::from_secs(2))?; seen.push((*d, d.attempts())); d.ack()?; }
    eprintln!("{:?} {seen:?} {q:?}", t0.elapsed());
    q.join()?;
    Ok(())
}
