// How a guest call is interrupted: the protocol of LinuxInterruptHandle, for Spin to search.
//
//   scripts/check-model        verifies every scenario, then shows that every seeded mistake is found
//
// By hand, one scenario (their names are below), and the course of the error that was found, if one was:
//
//   spin -DSCENARIO_KILL -a interrupt.pml && gcc -O2 -DSAFETY -o pan pan.c && ./pan -m10000
//   spin -DSCENARIO_KILL -t -p -g interrupt.pml
//
// What is modelled, with a step for each atomic access of the code:
//   - The 64-bit state word: its flags are `state`, beside them the reason and the call's number. They change in one
//     step, which is one read-modify-write, or the compare-and-exchange that succeeds.
//   - kvm_run.immediate_exit; the signals that are pending for the virtual CPU's thread; the handler, which runs
//     between any two steps of that thread, but not while it is inside KVM_RUN; and KVM_RUN, which looks at
//     immediate_exit once, then at pending signals before it goes into the guest and as long as it is there.
//   - The futex words `departures`, which kickers sleep on, and `attention`, which the virtual CPU's thread sleeps on.
//     Comparing and falling asleep is one step, a wake ends the sleep of whoever sleeps by then, and a sleep that a
//     signal interrupts is begun again (SA_RESTART), which compares again.
//   - The register of senders, the closing that waits for them, and the thread's end.
//   - The word of a PendingCall, which decides between a call's beginning and a KillSwitch that is used before it.
//   - Stops with their count and mutex, debuggers' requests, and the timer of a time limit.
// Comments in the sources refer to the labels, and to the names of the inline definitions.
//
// What is left out, or coarser:
//   - Memory ordering: steps are sequentially consistent. The sources argue for the orderings.
//   - Kickers do not time out: each kicks ONCE and sleeps until it is woken. So one kick is enough as long as no signal
//     is lost, and no wake-up is lost. In SCENARIO_LOST_SIGNAL a signal is lost (the kernel's queue may be full) and a
//     kicker's sleep may expire once; without that (MUTATION_NO_RETRY) a call would go on for ever.
//   - A cancelled task and a CPU limit are a kill and a timer with other reasons. A nested guest call's return is an
//     exit like a host call. Calls follow each other whatever became of the one before, as if restored.
//   - The handler is one step: its thread does nothing meanwhile, and other threads cannot tell its steps apart.
//   - Signals of one kind that are pending together are one: their handlers run without a step of the thread in between
//     and store the same value. How many there are is not modelled: kickers wait longer each time, so that the thread
//     gets through with them.
//
// What is shown, whatever the order of steps:
//   - The assertions. Each begins with its name; the names are explained where they are declared.
//   - Nobody hangs: who rests in the end does so at a label that begins with "end". The guest may spin for ever, a host
//     call may wait for ever, a stop may be held for ever; when nothing else can happen any more, the virtual CPU's
//     thread checks (`nothing_left_to_do`) that nobody has asked for something else.
//   - Nothing goes round in circles: there are no cycles at all, so every execution ends however threads are scheduled,
//     and no fairness has to be assumed. This is searched for with fewer calls (MOST_CALLS) where it would take long.
//
// Each MUTATION_… is a mistake that one of these finds. Each VARIANT_… is something that could be done otherwise.

// ---------------------------------------------------------------------------------------------------------------------
// Scenarios: how many there are of each. What is not given is 0.

#if defined(SCENARIO_KILL)           // three calls
#define CALLS 3
#define KILLERS 1
#define SWITCHES 1
#define STRAYS 1
#define HOST_CALLS 1
#define FAULTS 1
#elif defined(SCENARIO_SWITCHES)     // two KillSwitches, of the same call or of different ones
#define CALLS 2
#define KILLERS 1
#define SWITCHES 2
#define FAULTS 1
#elif defined(SCENARIO_WAIT)         // host calls that wait
#define CALLS 2
#define KILLERS 1
#define SWITCHES 1
#define HOST_CALLS 1
#define HOST_WAITS 1
#elif defined(SCENARIO_STOP)         // two stops, one inside the other or one after the other
#define CALLS 2
#define SWITCHES 1
#define STOPPERS 2
#define HOST_CALLS 1
#elif defined(SCENARIO_DEBUGGER)
#define CALLS 2
#define KILLERS 1
#define DEBUGGERS 2
#elif defined(SCENARIO_TIME_LIMIT)
#define CALLS 2
#define KILLERS 1
#define TIMERS 1
#define HOST_CALLS 1
#define HOST_WAITS 1
#elif defined(SCENARIO_LOST_SIGNAL)
#define CALLS 2
#define KILLERS 1
#define SWITCHES 1
#define LOSSES 1
#ifndef MUTATION_NO_RETRY
#define EXPIRIES 1
#endif
#elif defined(SCENARIO_ALL)          // of everything one, in one call
#define CALLS 1
#define SWITCHES 1
#define STOPPERS 1
#define DEBUGGERS 1
#define TIMERS 1
#else
#error "Choose a scenario: -DSCENARIO_KILL, for instance."
#endif

#ifdef MOST_CALLS
#if CALLS > MOST_CALLS
#undef CALLS
#define CALLS MOST_CALLS
#endif
#endif

#define CAN_WAIT (HOST_WAITS || STOPPERS)

// ---------------------------------------------------------------------------------------------------------------------
// What threads share

// The state word's flags.
#define CANCEL 1             // the call under way shall end
#define RUNNING 2            // the thread is in KVM_RUN, or past the point of no return before it
#define DEBUG_INTERRUPT 4    // a debugger wants the virtual CPU out of the guest
#define STOP 8               // the sandbox is to be held before its next entry
#define IN_CALL 16           // a top-level call is under way
#define ENTERED 32           // guest code of this call may have run
#define DECIDED 64           // what becomes of the call is settled
#define WAITING 128          // the thread sleeps inside the call, or is about to
#define REQUESTS (CANCEL | DEBUG_INTERRUPT | STOP)
byte state;
byte reason;                 // why CANCEL: KILLED or TIME_LIMIT
byte number;                 // of the call that is under way, or was last

// How KVM_RUN has returned, or is going to.
#define INTERRUPTED 1
#define SPINS 2
#define RETURNS 3
#define CALLS_HOST 4
#define FAULTS_IN_GUEST 5

// How a call ended.
#define RETURNED 1
#define FAULTED 2
#define THREW 3
#define KILLED 4
#define TIME_LIMIT 5

// The word of each call's PendingCall. BEGUN is the call's number.
#define PENDING 0
#define CANCELLED 1
#define BEGUN 2
byte pending_call[CALLS + 1];

bool immediate_exit;
byte senders;
bool senders_closed;

// The futex words. They count up, and are only compared with what the same thread has read before, so all that matters
// of a value is who has read it: a bit for each kicker, and one for the virtual CPU's thread.
byte departures_read;
bool attention_read;
#define READ_DEPARTURES departures_read = departures_read | (1 << _pid)
#define ADD_TO_DEPARTURES departures_read = 0
#define DEPARTURES_UNCHANGED (departures_read & (1 << _pid))
#define READ_ATTENTION attention_read = true
#define ADD_TO_ATTENTION attention_read = false
#define ATTENTION_UNCHANGED attention_read
byte sleepers;               // how many threads sleep on `departures`, or are about to

byte stop_count;
bool stop_mutex;

// What a host call waits for.
#define NOTHING 0
#define UNDER_WAY 1
#define NEVER_DONE 2
#define DONE 3
byte host_operation;

// What the kernel knows.
byte asleep_on_departures;   // a bit for each kicker
bool asleep_on_attention;
bool kick_pending;
bool timer_pending;
bool stray_pending;          // the same signal from somebody who has nothing to do with this
#define SIGNAL_PENDING (kick_pending || timer_pending || stray_pending)
bool in_kvm_run;
bool timer_armed;
bool thread_ended;
byte losses;                 // of signals

// What only the assertions need.
bool in_guest;
bool guest_ran;              // in the call under way
byte held_stops;             // whose beginning has returned, and whose end has not begun
byte cancelled_calls;        // whose KillSwitch was used before they began: a bit for each
byte timer_of_call;
byte promises;               // what somebody was told about the call under way
#define SIGNALLED 1
#define PENDING_END 2
#define CANCELLED_EARLY 4
#define DEADLINE 8
#define TERMINATED 16        // by a KillSwitch

// The names of the assertions. They are always 0, so that an assertion, and what Spin says about it, begins with one.
hidden byte no_lost_kill;                // a call does end as whoever asked for its end was told it would
hidden byte no_unasked_end;              // a call ends early only if somebody asked, and for the reason of the first
hidden byte no_wrong_call;               // who means one call ends no other one
hidden byte no_effect_on_settled_call;   // .notRunning, .notTerminable and .invalid change nothing
hidden byte no_cancel_left_over;         // from one call to the next
hidden byte one_terminates;              // at most one use of a call's KillSwitch succeeds
hidden byte no_guest_code_if_cancelled;  // .cancelled: the call ends before any
hidden byte left_when_signalled;         // a kicker comes back when the virtual CPU is out of the guest
hidden byte no_guest_code_if_stopped;    // from a stop's beginning having returned to its end
hidden byte no_signal_after_end;         // of the thread; and no store to kvm_run
hidden byte nothing_left_to_do;          // where the virtual CPU's thread rests for ever
hidden byte consistent;                  // what the code takes for granted about the word

inline promise(what) {
    assert(no_wrong_call || (state & IN_CALL));
    assert(no_lost_kill || !(state & DECIDED));
    promises = promises | (what)
}

// ---------------------------------------------------------------------------------------------------------------------
// Senders, kicks and wakes, by any thread. The caller has the variables `call`, `old` and `expiries`.

inline sender_register(turned_away) {
    d_step { senders++; turned_away = senders_closed }
}

inline sender_unregister() {
    d_step { senders--; old = 0; call = 0; expiries = 0 }
}

inline kick_store() {
    d_step {
        assert(no_signal_after_end || !thread_ended);
#if !defined(MUTATION_NO_IMMEDIATE_EXIT) && !defined(VARIANT_ONLY_HANDLER_STORES)
        immediate_exit = true
#endif
    }
}

inline kick_signal() {
    if
    :: d_step { assert(no_signal_after_end || !thread_ended); kick_pending = true }
#if LOSSES
    :: losses < LOSSES -> losses++
#endif
    fi
}

// Whether the virtual CPU still has to leave the guest for what this kicker has asked for, in the call it asked in.
#if defined(MUTATION_KICK_ANY_CALL)
#define STILL_TO_KICK(request) (state & RUNNING)
#elif defined(MUTATION_KICK_WHILE_RUNNING)
#define STILL_TO_KICK(request) ((state & RUNNING) && number == call)
#else
#define STILL_TO_KICK(request) ((state & RUNNING) && number == call && (state & request))
#endif

inline kick_sleep() {
    sleepers++;
    d_step {
        // FUTEX_WAIT
        if
        :: DEPARTURES_UNCHANGED -> asleep_on_departures = asleep_on_departures | (1 << _pid)
        :: else
        fi
    };
    if
    :: !(asleep_on_departures & (1 << _pid))
#if EXPIRIES
    :: (asleep_on_departures & (1 << _pid)) && expiries < EXPIRIES ->
        d_step { expiries++; asleep_on_departures = asleep_on_departures & ~(1 << _pid) }
#endif
    fi;
    sleepers--
}

inline kick_until_out(request) {
    do
    ::
#ifndef MUTATION_DEPARTURES_READ_LATE
        // Before the state: a departure in between changes the word, and the sleep ends at once.
        READ_DEPARTURES;
#endif
        if
        :: STILL_TO_KICK(request)
        :: else -> break
        fi;
        kick_store();
        kick_signal();
#ifdef MUTATION_DEPARTURES_READ_LATE
        READ_DEPARTURES;
#endif
#ifdef MUTATION_KICK_AND_GO
        break
#else
        kick_sleep()
#endif
    od;
    atomic {
        assert(left_when_signalled || request == DEBUG_INTERRUPT || !in_guest || number != call);
        departures_read = departures_read & ~(1 << _pid)
    }
}

// By whoever changed what the virtual CPU's thread waits for, and found it WAITING.
inline wake_attention() {
    ADD_TO_ATTENTION;
    asleep_on_attention = false
}

// ---------------------------------------------------------------------------------------------------------------------
// Those who interrupt. They come first, so that a byte has a bit for each `_pid`.

#if KILLERS
// kill()
active [KILLERS] proctype Killer() {
    byte old, call, expiries;
    bool turned_away;

    sender_register(turned_away);
    if
    :: turned_away -> goto unregister                                                       // .dropped
    :: else
    fi;
kill_request:
    d_step {
        old = state;
        call = number;
        if
#ifdef MUTATION_KILL_IGNORES_DECIDED
        :: !(old & IN_CALL) ->
#else
        :: !(old & IN_CALL) || (old & DECIDED) ->
#endif
#ifdef MUTATION_KILL_ALWAYS_CANCELS
            state = old | CANCEL;
#endif
            old = 0                                                                         // .notRunning
        :: else ->
            if
            :: old & CANCEL
            :: else -> state = old | CANCEL; reason = KILLED
            fi;
            if
            :: old & RUNNING -> promise(SIGNALLED)                                          // .signalled
            :: else -> promise(PENDING_END)                                                 // .pending
            fi
        fi;
        old = old & (RUNNING | WAITING)
    };
    if
    :: old & RUNNING -> kick_until_out(CANCEL)
#if defined(MUTATION_KILL_WITHOUT_WAKE) || !CAN_WAIT
    :: !(old & RUNNING)
#else
    :: !(old & RUNNING) && (old & WAITING) -> wake_attention()
    :: !(old & (RUNNING | WAITING))
#endif
    fi;
unregister:
    sender_unregister()
}
#endif

#if SWITCHES
// KillSwitch.terminate(), of any of the calls, at any time
active [SWITCHES] proctype Switch() {
    byte old, call, expiries;
    bool turned_away;

    atomic {
        if
        :: goto done                                                                        // never used
        :: call = 1
#if CALLS > 1
        :: call = 2
#endif
#if CALLS > 2
        :: call = 3
#endif
        fi;
pending_cancel:
        if
        :: pending_call[call] == PENDING ->
            pending_call[call] = CANCELLED;
            cancelled_calls = cancelled_calls | (1 << call);
            goto done                                                                       // .cancelled
        :: pending_call[call] == CANCELLED -> goto done                                     // .notTerminable
        :: pending_call[call] == BEGUN
        fi
    };
#ifndef MUTATION_SEND_UNREGISTERED
    sender_register(turned_away);
#endif
    if
    :: turned_away -> goto unregister                                                       // .invalid
    :: else
    fi;
terminate_request:
    d_step {
        old = state;
        if
#ifdef MUTATION_TERMINATE_ANY_CALL
        :: !(old & IN_CALL) ->
#else
        :: !(old & IN_CALL) || number != call ->
#endif
            old = 0                                                                         // .invalid
#ifdef MUTATION_TERMINATE_TWICE
        :: (old & IN_CALL) && number == call && (old & DECIDED) ->
#else
        :: (old & IN_CALL) && number == call && (old & (DECIDED | CANCEL)) ->
#endif
            old = 0                                                                         // .notTerminable
        :: else ->
            assert(no_wrong_call || number == call);
            assert(one_terminates || !(promises & TERMINATED));
            state = old | CANCEL;
            reason = KILLED;
            if
            :: old & RUNNING -> promise(TERMINATED | SIGNALLED)                             // .signalled
            :: !(old & (RUNNING | ENTERED)) -> promise(TERMINATED | CANCELLED_EARLY)        // .cancelled
            :: else -> promise(TERMINATED | PENDING_END)                                    // .pending
            fi
        fi;
        old = old & (RUNNING | WAITING | ENTERED)
    };
    if
    :: old & RUNNING -> kick_until_out(CANCEL)
#if !CAN_WAIT
    :: !(old & RUNNING)
#elif defined(MUTATION_CANCELLED_WITHOUT_WAKE)
    :: !(old & RUNNING) && (old & WAITING) && (old & ENTERED) -> wake_attention()
    :: !(old & RUNNING) && !((old & WAITING) && (old & ENTERED))
#else
    :: !(old & RUNNING) && (old & WAITING) -> wake_attention()
    :: !(old & (RUNNING | WAITING))
#endif
    fi;
unregister:
#ifndef MUTATION_SEND_UNREGISTERED
    sender_unregister();
#endif
done:
    atomic { old = 0; call = 0 }
}
#endif

#if STOPPERS
// A stop: its beginning, which returns when the virtual CPU is out of the guest, and its end, which may never come
active [STOPPERS] proctype Stopper() {
    byte old, call, expiries;
    bool turned_away;

    sender_register(turned_away);
    if
    :: turned_away -> goto unregister
    :: else
    fi;
    atomic { !stop_mutex -> stop_mutex = true };
    stop_count++;
    if
#ifdef VARIANT_EACH_STOP_KICKS
    :: true ->
#else
    :: stop_count == 1 ->
#endif
stop_begin:
        d_step { old = state & RUNNING; call = number; state = state | STOP };
#if defined(MUTATION_STOP_KICKS_UNLOCKED) || defined(VARIANT_EACH_STOP_KICKS)
        stop_mutex = false;
#endif
        if
        :: old & RUNNING -> kick_until_out(STOP)
        :: else
        fi
#if defined(MUTATION_STOP_KICKS_UNLOCKED)
    :: else -> stop_mutex = false
#elif !defined(VARIANT_EACH_STOP_KICKS)
    :: else
#endif
    fi;
    d_step {
#if !defined(MUTATION_STOP_KICKS_UNLOCKED) && !defined(VARIANT_EACH_STOP_KICKS)
        stop_mutex = false;
#endif
        assert(no_guest_code_if_stopped || !in_guest);
        held_stops++
    };
    sender_unregister();
    if
    :: skip
    :: skip ->
end_held_for_ever:
        false
    fi;
    atomic { !stop_mutex -> stop_mutex = true; held_stops-- };
    stop_count--;
    if
    :: stop_count == 0 ->
stop_end:
        d_step { old = state & WAITING; state = state & ~STOP };
        if
#ifndef MUTATION_STOP_ENDS_WITHOUT_WAKE
        :: old & WAITING -> wake_attention()
#endif
        :: else
        fi
    :: else
    fi;
    d_step { stop_mutex = false; old = 0 };
    goto done;
unregister:
    sender_unregister();
done:
    skip
}
#endif

#if DEBUGGERS
// killFromDebugger()
active [DEBUGGERS] proctype Debugger() {
    byte old, call, expiries;
    bool turned_away;

    sender_register(turned_away);
    if
    :: turned_away -> goto unregister
    :: else
    fi;
debug_request:
    d_step { old = state & RUNNING; call = number; state = state | DEBUG_INTERRUPT };
    if
    :: old & RUNNING -> kick_until_out(DEBUG_INTERRUPT)                                     // .interrupted
    :: else                                                                                 // .prevented
    fi;
unregister:
    sender_unregister()
}
#endif

#if TIMERS
// The kernel's timer
active proctype Timer() {
end_timer:
    do
    :: atomic { timer_armed -> timer_armed = false; timer_pending = true }
    od
}
#endif

#if STRAYS
// Somebody else's signal of the same number
active proctype Stray() {
    atomic {
        if
        :: !thread_ended -> stray_pending = true
        :: else
        fi
    }
}
#endif

#if HOST_WAITS
// Whatever a host call waits for, when it comes
active proctype HostOperation() {
    byte old;

end_host_operation:
    do
    :: atomic { host_operation == UNDER_WAY -> host_operation = DONE };
        old = state;
        if
        :: old & WAITING -> wake_attention()
        :: else
        fi;
        old = 0
    od
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// The virtual CPU's thread

// A sleep on a futex that the handler interrupts is begun again, and ends if the word has changed.
inline restart_sleep() {
    if
    :: ATTENTION_UNCHANGED
    :: else -> asleep_on_attention = false
    fi
}

// The signal handler. It runs on that thread: neither inside KVM_RUN nor after the thread's end.
active proctype SignalHandler() {
end_signal_handler:
    do
    :: d_step {
        kick_pending && !in_kvm_run && !thread_ended ->
        kick_pending = false;
#if !defined(MUTATION_NO_IMMEDIATE_EXIT) && !defined(VARIANT_ONLY_KICK_STORES)
handler_store:
        immediate_exit = true;
#endif
        restart_sleep()
    }
#if TIMERS
    :: d_step {
        timer_pending && !in_kvm_run && !thread_ended ->
        timer_pending = false;
timer_request:
        if
        :: (state & IN_CALL) && !(state & (CANCEL | DECIDED)) ->
            assert(no_wrong_call || timer_of_call == number);
            state = state | CANCEL;
            reason = TIME_LIMIT;
            promise(DEADLINE)
        :: else
        fi;
#ifndef MUTATION_TIMER_WITHOUT_ATTENTION
        ADD_TO_ATTENTION;
#endif
#ifndef MUTATION_TIMER_WITHOUT_STORE
        immediate_exit = true;
#endif
        restart_sleep()
    }
#endif
#if STRAYS
    :: d_step { stray_pending && !in_kvm_run && !thread_ended -> stray_pending = false; restart_sleep() }
#endif
    od
}

// FUTEX_WAIT on `attention`. Whoever sleeps for ever has checked that nobody wants it to wake up.
inline wait_sleep(reason_to_rest) {
    d_step {
        if
        :: ATTENTION_UNCHANGED -> asleep_on_attention = true
        :: else
        fi
    };
    if
    :: !asleep_on_attention
    :: timeout -> assert(nothing_left_to_do || ((reason_to_rest) && !(state & CANCEL))); goto end_rests
    fi
}

// Whoever sleeps until the virtual CPU has left the guest.
inline wake_sleepers() {
    if
    :: sleepers -> asleep_on_departures = 0
    :: else
    fi
}

active proctype VirtualCPUThread() {
    byte old, exit, outcome;
#if HOST_CALLS
    byte host_calls;         // that the guest may still make in this call
#endif
#if HOST_WAITS
    bool ignores_cancellation;
#endif

next_call:
    if
    :: number < CALLS
    :: else -> goto thread_close
    fi;

begin_call:
    d_step {
        number++;
#if defined(MUTATION_CANCEL_KEPT)
        state = (state & (STOP | DEBUG_INTERRUPT | CANCEL)) | IN_CALL;
#elif defined(MUTATION_CANCEL_CLEARED_LATE)
        state = (state & (STOP | DEBUG_INTERRUPT | CANCEL)) | IN_CALL
    };
    d_step {
        state = state & ~CANCEL;
#elif defined(MUTATION_STOP_CLEARED_AT_BEGIN)
        state = (state & DEBUG_INTERRUPT) | IN_CALL;
#else
        state = (state & (STOP | DEBUG_INTERRUPT)) | IN_CALL;
#endif
        assert(no_cancel_left_over || !(state & CANCEL));
#if HOST_CALLS
        host_calls = HOST_CALLS
#endif
    };
#if TIMERS
    if
    :: d_step { timer_armed = true; timer_of_call = number }
    :: skip
    fi;
#endif

#if SWITCHES
pending_begin:
#ifdef MUTATION_PENDING_BEGINS_IN_TWO_STEPS
    old = pending_call[number];
    d_step {
        if
        :: old == PENDING -> pending_call[number] = BEGUN
#else
    d_step {
        if
        :: pending_call[number] == PENDING -> pending_call[number] = BEGUN
#endif
        :: else -> outcome = KILLED; promises = promises | TERMINATED | CANCELLED_EARLY
        fi
    };
    if
    :: outcome == KILLED -> goto decide
    :: else
    fi;
#endif

enter:
#ifndef MUTATION_CLEARED_AFTER_LOOK
enter_clear_immediate_exit:
    immediate_exit = false;
#endif
#ifdef MUTATION_LOOK_THEN_RUN
    old = state;
#endif
enter_set_running:
    atomic {
#ifndef MUTATION_LOOK_THEN_RUN
        old = state;
#endif
        if
        :: old & REQUESTS
#ifdef MUTATION_NOT_ENTERED
        :: else -> state = state | RUNNING
#else
        :: else -> state = state | RUNNING | ENTERED
#endif
        fi;
        old = old & REQUESTS;
        exit = 0
    };
    if
#if defined(MUTATION_STOP_BEFORE_CANCEL) || defined(MUTATION_PARK_IGNORES_CANCEL)
    :: (old & CANCEL) && !(old & STOP) -> goto decide
    :: old & STOP -> goto park
#else
    :: old & CANCEL -> goto decide
#if STOPPERS
    :: !(old & CANCEL) && (old & STOP) -> goto park
#endif
#endif
#if DEBUGGERS
    :: (old & REQUESTS) == DEBUG_INTERRUPT ->
debug_hook:
        state = state & ~DEBUG_INTERRUPT;
        goto enter
#endif
    :: !(old & REQUESTS)
    fi;
#ifdef MUTATION_CLEARED_AFTER_LOOK
    immediate_exit = false;
#endif
#ifdef MUTATION_PARK_WITHOUT_WAKE
    wake_sleepers();
#endif

kvm_run:
    // The kernel looks at immediate_exit first,
    atomic {
        if
        :: immediate_exit -> exit = INTERRUPTED; goto after_kvm_run
        :: else -> in_kvm_run = true
        fi
    };
    // then at signals each time it is about to go into the guest; what the guest is going to do is settled here.
    atomic {
        if
        :: SIGNAL_PENDING -> in_kvm_run = false; exit = INTERRUPTED; goto after_kvm_run
        :: else ->
            in_guest = true;
            guest_ran = true;
            assert(no_guest_code_if_stopped || !held_stops);
            assert(no_guest_code_if_cancelled || !(promises & CANCELLED_EARLY));
            if
            :: exit = SPINS
            :: exit = RETURNS
#if HOST_CALLS
            :: host_calls -> host_calls--; exit = CALLS_HOST
#endif
#if FAULTS
            :: exit = FAULTS_IN_GUEST
#endif
            fi
        fi
    };
    atomic {
        if
        :: exit == SPINS && SIGNAL_PENDING -> exit = INTERRUPTED
        :: exit == SPINS && timeout -> assert(nothing_left_to_do || !(state & REQUESTS)); goto end_rests
        :: exit != SPINS
        fi;
        in_guest = false;
        in_kvm_run = false
    };

after_kvm_run:
    // What is pending is handled before the thread is back in its own code.
    !SIGNAL_PENDING;
leave_clear_running:
    d_step {
        old = state;
        if
#ifndef MUTATION_RETURN_NOT_DECIDED
        :: exit == RETURNS && !(old & CANCEL) -> state = (old | DECIDED) & ~RUNNING
#endif
#ifdef MUTATION_FAULT_DECIDED_LIKE_RETURN
        :: exit == FAULTS_IN_GUEST && !(old & CANCEL) -> state = (old | DECIDED) & ~RUNNING
#else
        :: exit == FAULTS_IN_GUEST -> state = (old | DECIDED) & ~RUNNING
#endif
        :: else -> state = old & ~RUNNING
        fi;
        old = old & REQUESTS
    };
#ifndef MUTATION_NO_DEPARTURE
    if
    :: old & REQUESTS ->
leave_add_departure:
        ADD_TO_DEPARTURES
    :: else
    fi;
#endif
    if
#ifdef MUTATION_RETURN_BEFORE_CANCEL
    :: exit == RETURNS -> outcome = RETURNED; goto decide
#else
    :: exit == RETURNS && !(old & CANCEL) -> outcome = RETURNED; goto decide
    :: exit == RETURNS && (old & CANCEL) -> goto decide
#endif
#if FAULTS
    :: exit == FAULTS_IN_GUEST -> outcome = FAULTED; goto decide
#endif
#ifdef MUTATION_INTERRUPTION_ENDS
    :: exit == INTERRUPTED -> outcome = KILLED; goto decide
#else
    :: exit == INTERRUPTED && (old & CANCEL) -> goto decide
#endif
#if HOST_CALLS
    :: exit == CALLS_HOST && (old & CANCEL) -> goto decide
#endif
    :: else ->
#ifndef MUTATION_PARK_WITHOUT_WAKE
        wake_sleepers()
#endif
    fi;
    if
    :: exit == INTERRUPTED -> goto enter
#if HOST_CALLS
    :: exit == CALLS_HOST
#endif
    fi;

#if HOST_CALLS
host_function:
    if
    :: goto enter
#ifdef MUTATION_THROW_NOT_DECIDED
    :: outcome = THREW; goto end_call
#else
    :: outcome = THREW; goto decide
#endif
#if HOST_WAITS
    :: host_operation = UNDER_WAY; ignores_cancellation = true
    :: host_operation = UNDER_WAY
    :: host_operation = NEVER_DONE
#endif
    fi;
#if HOST_WAITS
wait:
#ifdef MUTATION_WORK_BEFORE_WAITING
    if
    :: host_operation == DONE -> goto wait_clear_waiting
    :: else
    fi;
#endif
#ifdef MUTATION_WAITING_AFTER_LOOK
    old = state;
#endif
#ifndef MUTATION_ATTENTION_READ_LATE
wait_read_attention:
    READ_ATTENTION;
#endif
wait_set_waiting:
#ifdef MUTATION_WAITING_AFTER_LOOK
    state = state | WAITING;
#else
    atomic { old = state; state = old | WAITING };
#endif
    if
    :: (old & CANCEL) && !ignores_cancellation -> goto wait_clear_waiting
#ifndef MUTATION_WORK_BEFORE_WAITING
    :: host_operation == DONE -> goto wait_clear_waiting
#endif
    :: else
    fi;
#ifdef MUTATION_ATTENTION_READ_LATE
    READ_ATTENTION;
#endif
    wait_sleep(host_operation == NEVER_DONE);
    goto wait;
wait_clear_waiting:
    atomic { state = state & ~WAITING; attention_read = false; ignores_cancellation = false };
    if
    :: host_operation == DONE -> host_operation = NOTHING; goto enter
    :: host_operation != DONE -> host_operation = NOTHING; outcome = THREW; goto decide
    fi;
#endif
#endif

#if STOPPERS
park:
#ifdef MUTATION_WAITING_AFTER_LOOK
    old = state;
#endif
#ifndef MUTATION_ATTENTION_READ_LATE
park_read_attention:
    READ_ATTENTION;
#endif
park_set_waiting:
#ifdef MUTATION_WAITING_AFTER_LOOK
    state = state | WAITING;
#else
    atomic { old = state; state = old | WAITING };
#endif
#ifdef MUTATION_ATTENTION_READ_LATE
    READ_ATTENTION;
#endif
    if
#ifdef MUTATION_PARK_IGNORES_CANCEL
    :: old & STOP -> wait_sleep(state & STOP)
#else
    :: (old & STOP) && !(old & CANCEL) -> wait_sleep(state & STOP)
#endif
    :: else
    fi;
park_clear_waiting:
    d_step { state = state & ~WAITING; attention_read = false };
    goto enter;
#endif

decide:
    atomic {
        old = state;
        state = old | DECIDED;
        if
        :: outcome == RETURNED || outcome == FAULTED || outcome == KILLED
        :: else ->
            assert(consistent || (old & CANCEL) || outcome == THREW);
            if
            :: old & CANCEL -> outcome = reason
            :: else
            fi
        fi
    };
#if TIMERS && !defined(MUTATION_TIMER_NOT_DISARMED)
timer_disarm:
    // A signal that the timer has sent is handled before the system call returns.
    timer_armed = false;
    !timer_pending;
#endif
end_call:
    atomic {
        state = state & ~IN_CALL;
        assert(consistent || !(state & (RUNNING | WAITING)));
        assert(no_lost_kill || !promises || outcome == KILLED || outcome == TIME_LIMIT
            || (outcome == FAULTED && !(promises & (PENDING_END | CANCELLED_EARLY))));
        assert(no_lost_kill || !(promises & TERMINATED) || outcome == KILLED || outcome == FAULTED);
        assert(no_lost_kill || !(cancelled_calls & (1 << number)) || outcome == KILLED);
        assert(no_effect_on_settled_call || !(state & CANCEL) || promises);
        assert(no_unasked_end || outcome != KILLED || (promises & (SIGNALLED | PENDING_END | CANCELLED_EARLY)));
        assert(no_unasked_end || outcome != TIME_LIMIT || (promises & DEADLINE));
        assert(no_unasked_end || !(promises & DEADLINE) || outcome == TIME_LIMIT || outcome == FAULTED
            || (promises & CANCELLED_EARLY));
        assert(no_guest_code_if_cancelled || !guest_ran || !(promises & CANCELLED_EARLY));
        promises = 0;
        guest_ran = false;
        outcome = 0;
        exit = 0;
        old = 0
#if HOST_CALLS
        ;
        host_calls = 0
#endif
    };
    wake_sleepers();
    goto next_call;

thread_close:
    senders_closed = true;
#ifndef MUTATION_CLOSE_WITHOUT_WAIT
    senders == 0;
#endif
    thread_ended = true;
    goto end;

end_rests:
    false;
end:
    skip
}
