//! Models of `OnceCell`.
use crate::{SOON, check, join, killed_anywhere, share, spawn};
use outlast::OnceCell;

#[test]
fn once_cell_is_written_once() {
    check(|| {
        let cell = share(OnceCell::<u32>::new());
        let makers = [1, 2].map(|i| spawn(&cell, move |cell| *cell.get_or_init(|| i).unwrap()));
        let seen = join(makers);
        assert_eq!(seen[0], seen[1]);
        assert_eq!(cell.get(), Ok(Some(&seen[0])));
    });
}

#[test]
fn once_cell_wakes_who_waits() {
    check(|| {
        let cell = share(OnceCell::<u32>::new());
        let patient = spawn(&cell, |cell| *cell.wait().unwrap());
        let timed = spawn(&cell, |cell| cell.wait_timeout(SOON).ok().copied());
        cell.set(7).unwrap();
        assert_eq!(patient.join().unwrap(), 7);
        assert!(matches!(timed.join().unwrap(), None | Some(7)));
    });
}

#[test]
fn once_cell_outlasts_an_initialiser_killed_anywhere() {
    killed_anywhere(|victim| {
        let cell = share(OnceCell::<u32>::new());
        let patient = spawn(&cell, |cell| *cell.wait().unwrap());
        let victim = victim.spawn(&cell, |cell| *cell.get_or_init(|| 1).unwrap());
        let value = *cell.get_or_init(|| 2).unwrap();
        let life = victim.join().unwrap();
        assert!(life.result.is_none_or(|seen| seen == value));
        assert_eq!(patient.join().unwrap(), value);
    });
}
