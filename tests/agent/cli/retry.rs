//! retry and discard.

use crate::common::setup::{Setup, assert_says};

#[test]
fn each_id_has_its_own_result_and_a_failure_decides_the_exit_code() {
    for (arguments, code, said, after) in [
        (&["retry", "refused"][..], 0, "refused  pending again", ("refused", "pending")),
        (&["retry", "waiting"], 0, "waiting  is pending already", ("waiting", "pending")),
        (&["retry", "nobody"], 65, "nobody  still skipped: no_identity", ("nobody", "skipped")),
        (&["retry", "invalid"], 65, "invalid  still failed: invalid_field", ("invalid", "failed")),
        (&["retry", "delivered"], 65, "its body is not kept any more", ("delivered", "delivered")),
        (&["retry", "none", "refused"], 66, "none  no event has this messageId", ("refused", "pending")),
        (&["discard", "waiting"], 0, "waiting  discarded", ("waiting", "discarded")),
        (&["discard", "refused"], 0, "refused  discarded", ("refused", "discarded")),
        (&["discard", "delivered", "waiting"], 65, "is delivered already", ("waiting", "discarded")),
        (&["discard", "none", "delivered"], 66, "no event has this messageId", ("delivered", "delivered")),
    ] {
        let setup = Setup::with_events();
        let ran = setup.run(arguments);
        assert_eq!(ran.code, code, "{ran:?}");
        assert_says(&ran.out, &[said]);
        assert_eq!(setup.state_of(after.0).as_deref(), Some(after.1), "{arguments:?}");
    }
}

#[test]
fn all_events_of_a_state_become_pending_except_those_that_cannot_be_sent() {
    let setup = Setup::with_events();
    let ran = setup.run(&["retry", "--state", "failed,skipped,delivered"]);
    assert_eq!(ran.code, 0);
    assert_says(
        &ran.out,
        &[
            "1 event pending again",
            "1 event still cannot be sent: no_identity",
            "1 event still cannot be sent: invalid_field",
            "1 event unchanged: the body is not kept any more",
        ],
    );
    assert_eq!(setup.state_of("refused").as_deref(), Some("pending"));
    let ran = setup.run(&["retry", "--state", "failed", "--reason", "too_large", "--since", "2h"]);
    assert_eq!(ran.code, 0);
    assert_says(&ran.out, &["0 events pending again", "no event matches"]);
}
