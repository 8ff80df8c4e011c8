// How a call is made without leaving the guest: the owner protocol of polled calls, for Spin to search.
//
//   scripts/check-model        verifies every scenario, then shows that every seeded mistake is found
//
// By hand, one scenario (their names are below), and the course of the error that was found, if one was:
//
//   spin -DSCENARIO_CALLS -a mailbox.pml && gcc -O2 -DSAFETY -o pan pan.c && ./pan -m10000
//   spin -DSCENARIO_CALLS -t -p -g mailbox.pml
//
// What is modelled, with a step for each atomic access of the code:
//   - The mailbox word, which host and guest take turns by. A guest may write it whenever it runs.
//   - The 64-bit state word, whose flags are `state`, beside them the call's number. POLLING is one of them here; the
//     others are those of interrupt.pml.
//   - The baton, which says who may use the run loop, and the thread's sleep until it is put down: comparing and
//     falling asleep is one step.
//   - The thread's queue, whose lock makes one step of what is done with it: jobs, calls that come the ordinary way,
//     `is_polling`, `is_handed_over`, and the continuation of a call that is handed over, which goes before the others.
//   - kvm_run.immediate_exit, signals and their handler, and the futex word `departures`, as in interrupt.pml.
//   - The guest's trampoline and thunk. The guest takes a step only while the thread is in KVM_RUN, and is frozen
//     wherever it is when the thread comes out. Its budgets may be over at any time; a caller's too, or not for ever.
// Comments in the sources refer to the labels, and to the names of the inline definitions.
//
// An `out` may come late. The guest stores HOST, then executes its `out`: two steps, and the thread may come out of
// KVM_RUN between them. The host finds that the guest has stopped polling. If it gave it the next turn now, the guest
// would get around to its old `out` only then, and that would be taken for the end of something it has not begun. Any
// `out` counts, so the guest must not have its turn before a late one:
//   - Where there is no call, an interrupted guest is sent back to where it looks for its turn: it never executes the
//     `out` it was about to.
//   - A call, or a host call's answer, that comes after the guest has stopped polling is kept back. The guest is
//     entered without its turn until it leaves by its `out`, and given it then: at once if that is why the thread is
//     out.
//
// What is left out, or coarser:
//   - Memory ordering: steps are sequentially consistent.
//   - What interrupt.pml is about: the register of senders and the thread's end, KillSwitches that are used before
//     their call begins, sleeps inside a call, lost signals, the count of stops, and time limits of calls that come the
//     ordinary way.
//   - Faults of an honest guest, and nested calls: to this protocol their exits are like a hostile guest's.
//   - A sandbox that is poisoned is restored at once. Then its guest waits for a call.
//   - The thread goes polling whenever it has nothing else to do, up to POLLS times.
//   - The backstop, a timer that keeps a guest from polling for ever, sends up to BACKSTOPS signals at any time. When
//     nothing else can happen any more and no call is under way, it sends another one. Nobody else may rely on it: who
//     wants the thread has to get it without.
//   - A caller takes no more than HOST_CALLS host calls of one call; then he hands over.
//   - Host functions fail only where a caller runs them; the thread's ways to end a call are those of interrupt.pml.
//   - A caller reads the results as he ends the call. In the code that is a little later, and he still has the baton.
//   - Callers count departures where they clear RUNNING. Nobody needs that: the thread has not left.
//
// What is shown, whatever the order of steps:
//   - The assertions. Each begins with its name; the names are explained where they are declared.
//   - Nobody hangs: who rests in the end does so at a label that begins with "end". The guest may stop for ever
//     wherever it is; a stop may be held for ever. When nothing else can happen any more, the thread checks
//     (`nothing_left_to_do`) that nobody has asked for something else, and a caller that still polls, that nobody waits
//     for it.
//   - A caller waits for nothing but the end of a call that it has handed over, whatever the word is.
//   - Nothing goes round in circles, but a guest that is hostile and whoever it leads round: without a step of such a
//     guest there are no cycles. This is searched for with one call, where it would not take long.
//
// Each MUTATION_… is a mistake that one of these finds. Each VARIANT_… is something that could be done otherwise.

// ---------------------------------------------------------------------------------------------------------------------
// Scenarios: how many there are of each. What is not given is 0.

#if defined(SCENARIO_CALLS)          // two calls one after the other, and a job
#define CALLS 2
#define POLLS 2
#define JOBS 1
#define HOST_CALLS 1
#define BACKSTOPS 1
#elif defined(SCENARIO_CALLERS)      // two callers, and a time limit for what is left of a call that is handed over
#define CALLERS 2
#define POLLS 2
#define TIMERS 1
#define HOST_CALLS 1
#define REFUSALS 1
#elif defined(SCENARIO_INTERRUPTED)  // a kill, of whatever is under way or of one call, a stop, or a debugger
#define CALLS 2
#define POLLS 2
#define INTERRUPTERS 1
#define HOST_CALLS 1
#elif defined(SCENARIO_TOGETHER)     // two of these at a time
#define CALLS 1
#define POLLS 1
#define INTERRUPTERS 2
#define REFUSALS 1
#elif defined(SCENARIO_HOSTILE)      // a guest that does what it likes, and may have to be made to leave
#define CALLS 2
#define POLLS 1
#define JOBS 1
#define HOST_CALLS 1
#define BACKSTOPS 1
#define HOSTILE 1
#elif defined(SCENARIO_HOSTILE_INTERRUPTED)
#define CALLS 1
#define POLLS 1
#define INTERRUPTERS 1
#define HOST_CALLS 1
#define HOSTILE 1
#else
#error "Choose a scenario: -DSCENARIO_CALLS, for instance."
#endif

#ifndef CALLS
#define CALLS 1
#endif
#ifndef CALLERS
#define CALLERS 1
#endif

#ifndef HOSTILE
#define HOSTILE 0
#endif

#define CAN_BE_INTERRUPTED (INTERRUPTERS || TIMERS)

#ifdef MOST_CALLS
#undef BACKSTOPS
#if CALLS > MOST_CALLS
#undef CALLS
#define CALLS MOST_CALLS
#endif
#endif

// ---------------------------------------------------------------------------------------------------------------------
// What threads share

// The mailbox word. There is one more value that means nothing.
#define HOST 0               // the host's turn: the guest has left, or its `out` is due
#define GUEST 1              // the guest's turn, which it ends by HOST and an `out`
#define GUEST_POLLED 2       // the guest's turn, while a caller polls for what it does next
#define IDLE 3               // the guest polls for a call; the one before has returned
#define HOST_CALL 4          // the guest polls for somebody who takes its host call
#define WORD_TAKEN 5         // a caller runs the host function; the guest polls for its result
#define LEAVE 6              // the guest that polls shall leave
#define RUBBISH 7
byte word = HOST;

// The state word's flags.
#define CANCEL 1             // the call under way shall end
#define RUNNING 2            // the guest is at work on a call, or about to be
#define DEBUG_INTERRUPT 4    // a debugger wants the virtual CPU out of the guest
#define STOP 8               // the sandbox is to be held before its next entry
#define IN_CALL 16           // a call is under way
#define POLLING 32           // the thread is in KVM_RUN for polling, or past the point of no return before it
#define DECIDED 64           // what becomes of the call is settled
#define ENTERED 128          // guest code of this call may have run
#define REQUESTS (CANCEL | DEBUG_INTERRUPT | STOP)
byte state;
byte reason;                 // why CANCEL: KILLED or TIME_LIMIT
byte number;                 // of the call that is under way, or was last

// The baton: who may use the run loop.
#define OWN 0                // the thread
#define OFFERED 1            // whoever comes first: the guest polls
#define TAKEN 2              // a caller
#define RECALLED 4           // a flag: the thread wants it back
byte baton = OWN;

// The queue.
byte jobs;
byte ordinary;               // callers that wait for a call to be made for them: a bit for each
bool is_polling;
bool is_handed_over;
bool continuation;

// What a caller tells the thread with a call that it hands over.
#define BEGUN 0              // the guest has the call, and its turn
#define UNDELIVERED 1        // the guest has left, or is about to, and does not know of the call
#define ANSWERED 2           // the host function has been run, and the guest does not know of its result
#define FAILED 3             // the host function has failed
byte stage;

// How KVM_RUN has returned.
#define INTERRUPTED 1
#define RETURNS 2
#define CALLS_HOST 3
#define FAULTS_IN_GUEST 4
byte exit;

// How a call ended.
#define RETURNED 1
#define FAULTED 2
#define KILLED 3
#define TIME_LIMIT 4
#define THREW 5
#define REFUSED 6            // its arguments could not be passed

bool immediate_exit;

// The futex word `departures`, as in interrupt.pml: a bit for each kicker that sleeps until it changes.
byte departures_read;
#define READ_DEPARTURES departures_read = departures_read | (1 << _pid)
#define ADD_TO_DEPARTURES departures_read = 0
#define DEPARTURES_UNCHANGED (departures_read & (1 << _pid))

// What the kernel knows.
bool signal_pending;         // a kick, or the backstop
bool timer_pending;
bool timer_armed;
#define SIGNAL_PENDING (signal_pending || timer_pending)
bool in_guest;               // the thread is in KVM_RUN
bool asleep_on_baton;

// What the guest will do next when it is let.
#define POLLS_FOR_CALL 0     // also behind its `out`
#define RUNS 1
#define POLLS_FOR_ANSWER 2   // also behind its `out`
#define STORES_HOST_RETURN 3 // what it saw in the word makes it leave
#define STORES_HOST_CALL 4
#define OUT_RETURN 5         // its `out` is due
#define OUT_HOST_CALL 6
#define SPINS 7              // nothing, for ever
byte guest_at = POLLS_FOR_CALL;
byte request;                // the arguments: the call's number
byte requested;              // what the guest has found there
byte result;
byte host_calls;             // that the guest may still make in this call

// Whom the call under way is for, and for whom the thread still has to end one: a bit for each.
byte waiting_callers;
byte call_of;

// What only the assertions need.
byte owners = 1;             // of the run loop
bool guest_ran;              // in the call under way
bool host_call_made;
bool host_function_ran;      // for that
bool is_held;                // a stop's beginning has returned, and its end has not begun
byte timer_of_call;
byte promises;               // what somebody was told about the call under way
#define SIGNALLED 1
#define PENDING_END 2
#define DEADLINE 4

// The names of the assertions. They are always 0, so that an assertion, and what Spin says about it, begins with one.
hidden byte one_owner;                   // of the run loop
hidden byte one_run;                     // an honest guest runs each request once, and gives its result back
hidden byte one_answer;                  // each host call is taken once, and its answer is given to it
hidden byte one_end;                     // a call ends once
hidden byte no_lost_kill;                // a call does end as whoever asked for its end was told it would
hidden byte no_unasked_end;              // a call ends early only if somebody asked for that
hidden byte no_wrong_call;               // who means one call ends no other one, and between calls nobody ends any
hidden byte no_cancel_left_over;         // from one call to the next
hidden byte left_when_signalled;         // a kill that found the guest running comes back when it is out
hidden byte left_when_stopped;           // a stop's beginning comes back when the virtual CPU is out of the guest
hidden byte no_guest_code_if_stopped;    // from a stop's beginning having returned to its end
hidden byte no_poison;                   // for an honest guest
hidden byte nobody_waits_for_caller;     // while it polls without an end
hidden byte nothing_left_to_do;          // where the thread rests for ever
hidden byte consistent;                  // what the code takes for granted about its words

inline promise(what) {
    assert(no_wrong_call || (state & IN_CALL));
    assert(no_lost_kill || !(state & DECIDED));
    promises = promises | (what)
}

// In the step that begins a call.
inline begin(for_whom, flags) {
    number++;
    assert(consistent || !(state & (IN_CALL | RUNNING)));
#ifdef MUTATION_CANCEL_KEPT
    state = (state & (STOP | DEBUG_INTERRUPT | POLLING | CANCEL)) | IN_CALL | flags;
#else
    state = (state & (STOP | DEBUG_INTERRUPT | POLLING)) | IN_CALL | flags;
#endif
    assert(no_cancel_left_over || !(state & CANCEL));
    call_of = for_whom;
#if HOST_CALLS
    host_calls = HOST_CALLS;
#endif
    promises = 0;
    guest_ran = false
}

// In the step that ends it.
inline end_it(outcome_of_it) {
    assert(one_end || (state & IN_CALL));
    assert(no_lost_kill || !promises || outcome_of_it == KILLED || outcome_of_it == TIME_LIMIT
        || (outcome_of_it == FAULTED && !(promises & PENDING_END)));
    assert(no_unasked_end || outcome_of_it != KILLED || (promises & (SIGNALLED | PENDING_END)));
    assert(no_unasked_end || outcome_of_it != TIME_LIMIT || (promises & DEADLINE));
    assert(one_run || HOSTILE || outcome_of_it != RETURNED || (guest_ran && result == number));
    assert(no_poison || HOSTILE || outcome_of_it != FAULTED);
    assert(consistent || !(state & RUNNING));
    state = state & ~IN_CALL;
    promises = 0;
    guest_ran = false;
    host_call_made = false;
    host_function_ran = false;
    host_calls = 0
}

inline run_host_function() {
    d_step {
        assert(one_owner || owners == 1);
        assert(one_answer || HOSTILE || (host_call_made && !host_function_ran));
        host_function_ran = true
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kicks, by any thread

inline kick() {
    immediate_exit = true;
    signal_pending = true
}

// Whether the virtual CPU still has to leave the guest for what this kicker has asked for, in the call it asked in.
#if defined(MUTATION_STOP_IGNORES_POLLING)
#define INSIDE RUNNING
#else
#define INSIDE (RUNNING | POLLING)
#endif
#define KILL_IS_DUE ((state & RUNNING) && (state & CANCEL) && number == call)
#define STOP_IS_DUE ((state & INSIDE) && (state & STOP) && number == call)
#define DEBUG_INTERRUPT_IS_DUE ((state & INSIDE) && (state & DEBUG_INTERRUPT) && number == call)

#define HAS_LEFT_CALL (number != call || !(state & IN_CALL) || !in_guest)

inline kick_until_out(is_due, has_left) {
    do
    ::
        // Before the state: a departure in between changes the word, and the sleep ends at once.
        READ_DEPARTURES;
        if
        :: is_due
        :: else -> break
        fi;
        kick();
        !DEPARTURES_UNCHANGED
    od;
    atomic {
        assert(left_when_signalled || has_left);
        departures_read = departures_read & ~(1 << _pid);
        old = 0;
        call = 0
    }
}

// Whoever puts something into the queue. The first one to do so while the thread polls recalls it.
inline call_thread() {
    old = is_polling;
    is_polling = false
}

inline recall_kick() {
#ifndef MUTATION_RECALL_WITHOUT_KICK
    kick()
#else
    skip
#endif
}

inline recall() {
#ifdef MUTATION_KICK_BEFORE_RECALL
    recall_kick();
    baton = baton | RECALLED
#else
#ifndef MUTATION_KICK_WITHOUT_RECALL
    baton = baton | RECALLED;
#endif
    recall_kick()
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Those who call. They and those who interrupt come first, so that a byte has a bit for each `_pid`.

#define ME (1 << _pid)
#if TIMERS
#define TIMER_IS_OF_CALL timer_of_call = number
#else
#define TIMER_IS_OF_CALL skip
#endif

// Only the thread clears RECALLED, and it wakes up when the baton is not taken any more.
inline baton_put_down() {
    atomic {
#ifdef MUTATION_PUT_DOWN_IN_TWO_STEPS
        old = baton
    };
    atomic {
#else
        old = baton;
#endif
        owners--;
#ifdef MUTATION_PUT_DOWN_FORGETS_RECALL
        baton = OWN
#else
        baton = baton & ~TAKEN
#endif
    };
    if
    :: old & RECALLED -> asleep_on_baton = false
    :: else
    fi
}

inline baton_give_back() {
#ifdef MUTATION_BATON_GIVEN_BACK_BLINDLY
    atomic { owners--; baton = OFFERED }
#else
    atomic {
        old = baton;
        if
        :: old == TAKEN -> baton = OFFERED; owners--
        :: else
        fi
    };
    if
    :: old != TAKEN -> baton_put_down()
    :: else
    fi
#endif
}

inline hand_over_in_queue() {
    atomic { is_handed_over = true; is_polling = false; waiting_callers = waiting_callers | ME; old = 0 }
}

active [CALLERS] proctype Caller() {
    byte calls, old;
    bool is_patient;
    bool is_wanted;          // the guest shall leave, though it may have no reason to
#if HOST_CALLS
    byte taken;              // host calls, in this call
    bool has_run;            // the host function
#endif

next_call:
    if
    :: calls < CALLS -> calls++
    :: else -> goto done
    fi;

baton_take:
    atomic {
        if
#ifdef VARIANT_TAKEN_DESPITE_RECALL
        :: baton & OFFERED -> baton = baton + TAKEN - OFFERED; owners++; assert(one_owner || owners == 1)
#else
        :: baton == OFFERED -> baton = TAKEN; owners++; assert(one_owner || owners == 1)
#endif
        :: else -> goto ordinary_way
        fi
    };
polled_begin:
    atomic {
        if
#ifdef MUTATION_BEGINS_WITHOUT_POLLING
        :: state & (STOP | DEBUG_INTERRUPT | IN_CALL) -> old = 0
#elif defined(MUTATION_BEGINS_DESPITE_STOP)
        :: !(state & POLLING) -> old = 0
#else
        :: !(state & POLLING) || (state & (STOP | DEBUG_INTERRUPT | IN_CALL)) -> old = 0
#endif
        :: else -> begin(ME, RUNNING | ENTERED); old = 1
        fi
    };
    if
    :: old
    :: !old -> baton_give_back(); goto ordinary_way
    fi;
    atomic {
        assert(one_owner || owners == 1);
        request = number;
        old = 0;
        if
        :: skip
#if REFUSALS
        :: goto polled_refuse
#endif
        fi
    };

polled_request:
    atomic {
        if
#ifdef MUTATION_REQUESTED_WITHOUT_LOOK
        :: true -> word = GUEST_POLLED
#else
        :: word == IDLE -> word = GUEST_POLLED
#endif
#ifdef MUTATION_UNDELIVERED_FORGOTTEN
        :: else -> goto hand_over
#else
        :: else -> stage = UNDELIVERED; goto hand_over
#endif
        fi;
        // Its budget is over at any time, or not until nothing else can happen.
        if
        :: is_patient = true
        :: is_patient = false
        fi
    };

poll:
    if
    :: word == IDLE
#if HOST_CALLS
    :: word == HOST_CALL -> goto host_call
#endif
    :: word == GUEST_POLLED && !is_patient -> goto give_up
#ifndef MUTATION_RECALL_IGNORED
    :: word == GUEST_POLLED && (baton & RECALLED) -> goto give_up
#endif
#ifndef MUTATION_CALLER_WAITS
    :: word != GUEST_POLLED && word != IDLE && word != HOST_CALL -> goto hand_over
    :: timeout -> assert(nobody_waits_for_caller || !asleep_on_baton); goto give_up
#endif
    fi;

polled_end:
    atomic {
        old = state;
        if
#ifdef MUTATION_POLLED_END_IGNORES_CANCEL
        :: true ->
#else
        :: old & CANCEL -> goto hand_over
        :: else ->
#endif
            state = (state | DECIDED) & ~RUNNING;
            end_it(RETURNED)
        fi
    };
    baton_give_back();
    goto answered_call;

#if REFUSALS
// Its arguments cannot be passed.
polled_refuse:
    atomic {
        old = (state & CANCEL -> reason : REFUSED);
        state = state | DECIDED
    };
    atomic { state = state & ~RUNNING; end_it(old) };
    baton_give_back();
    goto answered_call;
#endif

#if HOST_CALLS
host_call:
    if
    :: taken < HOST_CALLS && !(baton & RECALLED) -> taken++
    :: true ->
        // Not a function that can be run here, or not now.
        atomic {
            if
            :: word == HOST_CALL -> word = LEAVE
            :: else
            fi;
            goto hand_over
        }
    fi;
polled_host_call:
#ifndef VARIANT_RUNNING_IN_HOST_FUNCTION
    atomic {
        if
#ifndef MUTATION_HOST_CALL_IGNORES_CANCEL
        :: state & CANCEL -> goto hand_over
#endif
        :: else -> state = state & ~RUNNING
        fi
    };
#endif
polled_take:
    atomic {
        if
#ifdef MUTATION_TAKEN_WITHOUT_LOOK
        :: true -> word = WORD_TAKEN
#else
        :: word == HOST_CALL -> word = WORD_TAKEN
#endif
#if defined(MUTATION_NOT_RUNNING_AGAIN) || defined(VARIANT_RUNNING_IN_HOST_FUNCTION)
        :: else -> goto hand_over
#else
        :: else -> goto polled_host_return
#endif
        fi
    };
    run_host_function();
    atomic {
        if
        :: true -> has_run = true
        :: true ->
            stage = FAILED;
#ifndef MUTATION_FAILURE_LEFT_TO_GUEST
            is_wanted = true;
#endif
            goto hand_over
        fi
    };

#ifdef VARIANT_RUNNING_IN_HOST_FUNCTION
    goto polled_answer;
#endif
polled_host_return:
    // Also where the guest is about to leave by itself: as long as it may run, whoever ends the call has to see that.
    atomic {
        if
#ifdef MUTATION_RETURNS_DESPITE_REQUESTS
        :: !(state & POLLING) ->
#elif defined(MUTATION_RETURNS_WITHOUT_POLLING)
        :: state & REQUESTS ->
#else
        :: !(state & POLLING) || (state & REQUESTS) ->
#endif
            // Whoever asked for the end has found no guest to kick.
#ifndef MUTATION_KILL_LEFT_TO_GUEST
            is_wanted = true;
#endif
#ifndef MUTATION_ANSWER_FORGOTTEN
            stage = (has_run -> ANSWERED : BEGUN);
#endif
            goto hand_over
        :: else -> state = state | RUNNING
        fi;
        if
        :: has_run
        :: else -> goto hand_over
        fi
    };
polled_answer:
    atomic {
        if
#ifdef MUTATION_ANSWERED_WITHOUT_LOOK
        :: true -> word = GUEST_POLLED
#else
        :: word == WORD_TAKEN -> word = GUEST_POLLED
#endif
#ifdef MUTATION_ANSWER_FORGOTTEN
        :: else -> goto hand_over
#else
        :: else -> stage = ANSWERED; goto hand_over
#endif
        fi;
        has_run = false;
        goto poll
    };
#endif

give_up:
#ifdef MUTATION_DELIVERED_TWICE
    stage = UNDELIVERED;
#endif
#ifdef VARIANT_STILL_POLLED
    skip;
#else
    atomic {
        if
        :: word == GUEST_POLLED -> word = GUEST
        // What the guest has done just now counts.
        :: else -> goto poll
        fi
    };
#endif

hand_over:
#if TIMERS && !defined(MUTATION_TIMER_ARMED_LATE)
    if
    :: atomic { timer_armed = true; TIMER_IS_OF_CALL }
    :: skip
    fi;
#endif
#ifndef MUTATION_HANDED_OVER_LATE
    hand_over_in_queue();
#endif
#if HOST_CALLS && !defined(MUTATION_WANTED_WITHOUT_RECALL)
    if
#ifdef MUTATION_WANTED_KICK_BEFORE_RECALL
    :: is_wanted -> kick(); baton = baton | RECALLED
#else
    :: is_wanted -> baton = baton | RECALLED
#endif
    :: else
    fi;
#endif
    baton_put_down();
#if HOST_CALLS && !defined(MUTATION_WANTED_WITHOUT_KICK) && !defined(MUTATION_WANTED_KICK_BEFORE_RECALL)
    if
    :: is_wanted -> kick()
    :: else
    fi;
#endif
#ifdef MUTATION_HANDED_OVER_LATE
    hand_over_in_queue();
#endif
    continuation = true;
#if TIMERS && defined(MUTATION_TIMER_ARMED_LATE)
    atomic { timer_armed = true; TIMER_IS_OF_CALL };
#endif
    goto wait;

ordinary_way:
    atomic { ordinary = ordinary | ME; call_thread(); waiting_callers = waiting_callers | ME };
    if
    :: old -> recall()
    :: else
    fi;

wait:
    atomic {
        old = 0;
        is_patient = 0;
        is_wanted = 0
#if HOST_CALLS
        ;
        has_run = 0
#endif
    };
end_waits:
    !(waiting_callers & ME);

answered_call:
    atomic {
        old = 0;
        is_patient = 0
#if HOST_CALLS
        ;
        taken = 0
#endif
    };
    goto next_call;
done:
    skip
}

#if JOBS
// Somebody who has something to be done on the thread
active [JOBS] proctype Job() {
    bool old;

    atomic { jobs++; call_thread() };
    if
    :: old -> recall()
    :: else
    fi;
    old = false
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Those who interrupt

#if INTERRUPTERS
active [INTERRUPTERS] proctype Interrupter() {
    byte old, call;

    if
    :: goto kill_request
    :: _pid == CALLERS -> goto stop_begin        // the first alone, for stops are counted
    :: _pid == CALLERS -> goto debug_request
    :: call = 1
#if CALLS > 1
    :: call = 2
#endif
    fi;

// KillSwitch.terminate(), of any of the calls, once it has begun
terminate_request:
    atomic {
        if
        :: !(state & IN_CALL) || number != call || (state & (DECIDED | CANCEL)) ->
            goto done                                                                       // .invalid, .notTerminable
        :: else -> goto kill
        fi
    };

// kill()
kill_request:
    atomic {
        if
#ifdef MUTATION_KILL_WHILE_POLLING
        :: !(state & POLLING) && (!(state & IN_CALL) || (state & DECIDED)) -> goto done     // .notRunning
#else
        :: !(state & IN_CALL) || (state & DECIDED) -> goto done                             // .notRunning
#endif
        :: else -> call = number
        fi;
kill:
        old = state & RUNNING;
        if
        :: state & CANCEL
        :: else -> state = state | CANCEL; reason = KILLED
        fi;
        if
        :: old -> promise(SIGNALLED)                                                        // .signalled
        :: else -> promise(PENDING_END)                                                     // .pending
        fi
    };
    if
    :: old -> kick_until_out(KILL_IS_DUE, HAS_LEFT_CALL)
    :: else
    fi;
    goto done;

// A stop: its beginning, which returns when the virtual CPU is out of the guest, and its end, which may never come
stop_begin:
    atomic { old = state & INSIDE; state = state | STOP; call = number };
    if
    :: old -> kick_until_out(STOP_IS_DUE, true)
    :: else
    fi;
    atomic { assert(left_when_stopped || !in_guest); is_held = true };
    if
    :: skip
    :: skip ->
end_held_for_ever:
        false
    fi;
    is_held = false;
stop_end:
    state = state & ~STOP;
    goto done;

// killFromDebugger()
debug_request:
    atomic { old = state & INSIDE; state = state | DEBUG_INTERRUPT; call = number };
    if
    :: old -> kick_until_out(DEBUG_INTERRUPT_IS_DUE, true)
    :: else
    fi;
done:
    atomic { old = 0; call = 0 }
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

#if BACKSTOPS
// The timer that keeps the guest from polling for ever
active proctype Backstop() {
    byte signals;

end_backstop:
    do
    :: atomic { is_polling && signals < BACKSTOPS -> signals++; signal_pending = true }
    od
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// The guest, which takes a step only while the thread is in KVM_RUN

inline leave_guest(how) {
    in_guest = false;
    exit = how
}

active proctype Guest() {
end_guest:
    do
#if HOSTILE
    // Whatever a caller polls, it may see anything; and the guest need not leave.
    :: atomic {
        in_guest && guest_at != SPINS ->
        if
        :: word = HOST
        :: word = GUEST_POLLED
        :: word = IDLE
        :: word = HOST_CALL
        :: word = WORD_TAKEN
        :: word = RUBBISH
        fi
    }
#ifdef MOST_CALLS
        ;
        goto progress_by_guest
#endif
    :: atomic {
        in_guest && guest_at != SPINS ->
        if
        :: leave_guest(RETURNS)
        :: leave_guest(CALLS_HOST)
        :: leave_guest(FAULTS_IN_GUEST)
        fi
    }
#ifdef MOST_CALLS
        ;
progress_by_guest:
        skip
#endif
#else
    :: atomic {
        in_guest && guest_at == POLLS_FOR_CALL ->
        if
        :: word == GUEST || word == GUEST_POLLED ->
            assert(one_run || ((state & IN_CALL) && !guest_ran));
            guest_ran = true;
            requested = request;
            guest_at = RUNS
#ifdef MUTATION_GUEST_PARKS_BLINDLY
        :: else -> guest_at = STORES_HOST_RETURN
#else
        :: else ->
            // Its budget is over, or it sees something else.
            guest_at = (word == IDLE -> OUT_RETURN : STORES_HOST_RETURN);
            word = (word == IDLE -> HOST : word)
#endif
        fi
    }
    :: atomic {
        in_guest && guest_at == RUNS ->
        if
        :: true ->
            result = requested;
            requested = 0;
            if
            :: word == GUEST_POLLED -> word = IDLE; guest_at = POLLS_FOR_CALL
            :: else -> guest_at = STORES_HOST_RETURN
            fi
#if HOST_CALLS
        :: host_calls ->
            host_calls--;
            assert(one_answer || !host_call_made);
            host_call_made = true;
            if
            :: word == GUEST_POLLED -> word = HOST_CALL; guest_at = POLLS_FOR_ANSWER
            :: else -> guest_at = STORES_HOST_CALL
            fi
#endif
        fi
    }
#if HOST_CALLS
    :: atomic {
        in_guest && guest_at == POLLS_FOR_ANSWER ->
        if
        :: word == GUEST || word == GUEST_POLLED ->
            assert(one_answer || host_function_ran);
            host_function_ran = false;
            host_call_made = false;
            guest_at = RUNS
#ifdef MUTATION_GUEST_STOPS_WAITING_BLINDLY
        :: word == HOST_CALL || word == WORD_TAKEN -> guest_at = STORES_HOST_CALL
#else
        :: word == HOST_CALL || word == WORD_TAKEN -> word = HOST; guest_at = OUT_HOST_CALL
#endif
        :: else -> guest_at = STORES_HOST_CALL
        fi
    }
    :: atomic { in_guest && guest_at == STORES_HOST_CALL -> word = HOST; guest_at = OUT_HOST_CALL }
    :: atomic { in_guest && guest_at == OUT_HOST_CALL -> guest_at = POLLS_FOR_ANSWER; leave_guest(CALLS_HOST) }
#endif
    :: atomic { in_guest && guest_at == STORES_HOST_RETURN -> word = HOST; guest_at = OUT_RETURN }
    :: atomic { in_guest && guest_at == OUT_RETURN -> guest_at = POLLS_FOR_CALL; leave_guest(RETURNS) }
#endif
    :: atomic { in_guest && guest_at != SPINS -> guest_at = SPINS; requested = 0 }
    od
}

// ---------------------------------------------------------------------------------------------------------------------
// The virtual CPU's thread

// The signal handler. It runs on that thread, not inside KVM_RUN.
active proctype SignalHandler() {
end_signal_handler:
    do
    :: d_step { signal_pending && !in_guest -> signal_pending = false; immediate_exit = true }
#if TIMERS
    :: d_step {
        timer_pending && !in_guest ->
        timer_pending = false;
        if
        :: (state & IN_CALL) && !(state & (CANCEL | DECIDED)) ->
            assert(no_wrong_call || timer_of_call == number);
            state = state | CANCEL;
            reason = TIME_LIMIT;
            promise(DEADLINE)
        :: else
        fi;
        immediate_exit = true
    }
#endif
    od
}

// Looks at immediate_exit first, then at signals.
inline kvm_run() {
    atomic {
        if
        :: immediate_exit -> exit = INTERRUPTED
        :: else ->
            assert(no_guest_code_if_stopped || !is_held);
            in_guest = true;
            exit = 0
        fi
    };
    if
    :: !in_guest
    :: atomic { in_guest && SIGNAL_PENDING -> leave_guest(INTERRUPTED) }
    :: atomic { in_guest && timeout } ->
        assert(nothing_left_to_do || !(state & (STOP | DEBUG_INTERRUPT)));
        assert(nothing_left_to_do || !(state & IN_CALL) || !(state & CANCEL));
        assert(nothing_left_to_do || (state & IN_CALL) || !(jobs || ordinary))
    fi;
    // What is pending is handled before the thread is back in its own code.
    !SIGNAL_PENDING
}

inline end_polling() {
    atomic {
        old = state & REQUESTS;
#ifdef MUTATION_RUNNING_LEFT
        state = state & ~POLLING
#else
        state = state & ~(POLLING | RUNNING)
#endif
    };
#if CAN_BE_INTERRUPTED && !defined(MUTATION_POLLING_ENDS_WITHOUT_DEPARTURE)
    if
    :: old -> ADD_TO_DEPARTURES
    :: else
    fi
#else
    skip
#endif
}

active proctype VirtualCPUThread() {
    byte old, outcome, polls, seen;
    bool is_known;           // how KVM_RUN has returned, which it did while the thread polled
    bool owes_turn;          // the guest is about to leave, and is to be given its turn then
#ifdef MUTATION_HANDED_OVER_READ_EARLY
    bool handed_over;
#endif

idle:
    if
#if JOBS
    :: atomic { jobs -> jobs--; assert(one_owner || owners == 1) }; goto idle
#endif
    :: atomic { ordinary -> old = ordinary & -ordinary; ordinary = ordinary & ~old }
    :: atomic { !jobs && !ordinary && polls < POLLS -> polls++ }; goto go_polling
    :: timeout -> assert(nothing_left_to_do || (!jobs && !ordinary && !waiting_callers)); goto end_rests
    fi;

begin_call:
    d_step { begin(old, 0); old = 0; request = number; word = GUEST };
    goto enter;

go_polling:
    // Nobody else has anything to do with the word yet.
    atomic {
        assert(one_owner || owners == 1);
        word = IDLE
#ifndef MUTATION_CLEARED_AFTER_LOOK
        ;
        immediate_exit = false
#endif
    };
polling_begin:
    atomic {
        if
#ifdef MUTATION_POLLS_DESPITE_STOP
        :: false
#else
        :: state & (STOP | DEBUG_INTERRUPT) -> goto idle
#endif
        :: else -> state = state | POLLING; seen = number
        fi
    };
#ifdef MUTATION_OFFERED_BEFORE_PUBLISHED
    atomic { baton == OWN -> baton = OFFERED; owners-- };
#endif
polling_publish:
    atomic {
        if
#ifdef MUTATION_PUBLISHED_WITHOUT_LOOK
        :: false
#else
        :: jobs || ordinary -> old = false; goto polling_gives_up
#endif
#ifdef MUTATION_PUBLISHED_LATE
        :: else
        fi
    };
    is_polling = true;
#else
        :: else -> is_polling = true
        fi
    };
#endif
polling_offer:
#ifndef MUTATION_OFFERED_BEFORE_PUBLISHED
    atomic {
        if
#ifdef MUTATION_OFFERED_BLINDLY
        :: true -> baton = OFFERED; owners--
#else
        :: baton == OWN -> baton = OFFERED; owners--
        :: else -> old = true; goto polling_gives_up
#endif
        fi
    };
#endif
#ifdef MUTATION_CLEARED_AFTER_LOOK
    immediate_exit = false;
#endif

poll:
    kvm_run();
    if
    :: in_guest && (state & IN_CALL) ->
        assert(nothing_left_to_do || (stage != FAILED && !(baton & RECALLED)));
        goto end_rests
    :: in_guest && !(state & IN_CALL) -> leave_guest(INTERRUPTED)           // by the backstop
    :: !in_guest && exit == INTERRUPTED
    :: !in_guest && exit != INTERRUPTED -> goto polling_end
    fi;
polling_look:
    immediate_exit = false;
    atomic {
        if
#ifdef MUTATION_BACKSTOP_IGNORES_REQUESTS
        :: false
#else
        :: state & REQUESTS -> goto polling_end
#endif
        :: else -> old = (state & IN_CALL) || number != seen; seen = number
        fi
    };
    if
    :: old && !(baton & RECALLED) -> old = 0; goto poll
    :: !old || (baton & RECALLED) -> old = 0
    fi;

polling_end:
    end_polling();
#ifdef MUTATION_HANDED_OVER_READ_EARLY
    handed_over = is_handed_over;
#endif
baton_take_back:
    atomic {
        if
#ifdef MUTATION_BATON_TAKEN_BACK_BLINDLY
        :: true -> baton = OWN; owners++; assert(one_owner || owners == 1); goto baton_is_back
#else
        :: !(baton & TAKEN) -> baton = OWN; owners++; assert(one_owner || owners == 1); goto baton_is_back
        :: else -> baton = baton | RECALLED
#endif
        fi
    };
    // FUTEX_WAIT
    d_step {
        if
#ifdef MUTATION_SLEEPS_BLINDLY
        :: true -> asleep_on_baton = true
#endif
        :: baton == (TAKEN | RECALLED) -> asleep_on_baton = true
        :: else
        fi
    };
    !asleep_on_baton;
    goto baton_take_back;
baton_is_back:
    atomic { is_polling = false; old = 0; seen = 0 };

    if
    :: state & IN_CALL
    :: else ->
        // The guest has polled for long enough, or was interrupted at that. If it pretends to, or has left in any other
        // way, it is poisoned.
        d_step {
            word = HOST;
            if
            :: exit == RETURNS
            :: exit == INTERRUPTED ->
                assert(no_poison || HOSTILE || guest_at == POLLS_FOR_CALL || guest_at == STORES_HOST_RETURN
                    || guest_at == OUT_RETURN || guest_at == SPINS);
#ifndef MUTATION_INSTRUCTION_POINTER_KEPT
                // Its instruction pointer is set.
                guest_at = POLLS_FOR_CALL
#endif
            :: else -> assert(no_poison || HOSTILE); guest_at = POLLS_FOR_CALL
            fi;
            exit = 0
        };
        goto idle
    fi;
#if defined(MUTATION_HANDED_OVER_READ_EARLY)
    if
    :: handed_over -> handed_over = false
    :: else -> exit = 0; goto idle
    fi;
#elif defined(MUTATION_HANDED_OVER_LATE)
    if
    :: is_handed_over
    :: else -> exit = 0; goto idle
    fi;
#else
    assert(consistent || is_handed_over);
#endif
#ifdef MUTATION_JOB_BEFORE_CONTINUATION
    if
    :: jobs || ordinary -> goto idle
    :: continuation
    fi;
#endif
    atomic { continuation -> continuation = false; is_handed_over = false };

    // The call goes on here, with the exit and the word as they are.
    if
#if HOST_CALLS
    :: stage == FAILED -> stage = BEGUN; outcome = THREW; goto decide
#endif
    :: stage != FAILED && (state & CANCEL) -> goto decide
    :: stage != FAILED && !(state & CANCEL)
    fi;
    // What the guest does next ends in an exit, also where it has done it already. Nobody but the thread is left to
    // change the word.
    d_step {
        if
        :: stage == UNDELIVERED ->
#ifdef MUTATION_UNDELIVERED_GIVEN_AT_ONCE
            owes_turn = exit != INTERRUPTED;
            word = (owes_turn -> word : GUEST)
#else
            owes_turn = true
#endif
#if HOST_CALLS
#ifndef VARIANT_ANSWER_KEPT_BACK
        :: stage == ANSWERED && word == WORD_TAKEN -> word = GUEST
        :: stage == ANSWERED && word != WORD_TAKEN ->
#else
        :: stage == ANSWERED ->
#endif
#ifdef MUTATION_ANSWERED_GIVEN_AT_ONCE
            owes_turn = exit != INTERRUPTED;
            word = (owes_turn -> word : GUEST)
#else
            owes_turn = true
#endif
#endif
        :: else
        fi;
        stage = BEGUN;
        if
#ifndef VARIANT_WORD_KEPT
        :: word == GUEST_POLLED -> word = GUEST
        :: word == HOST_CALL || word == IDLE -> word = LEAVE
#endif
        :: else
        fi;
        is_known = true
    };
    goto left;

enter:
    immediate_exit = false;
enter_set_running:
    atomic {
        old = state & REQUESTS;
        exit = 0;
        is_known = false;
        if
        :: old
        :: else -> state = state | RUNNING | ENTERED
        fi
    };
    if
    :: old & CANCEL -> goto decide
#if INTERRUPTERS
    :: !(old & CANCEL) && (old & STOP) ->
        old = 0;
end_parked:
        !(state & STOP) || (state & CANCEL);
        goto enter
    :: old == DEBUG_INTERRUPT -> old = 0; state = state & ~DEBUG_INTERRUPT; goto enter
#endif
    :: !old
    fi;
    kvm_run();
    if
    :: in_guest -> goto end_rests
    :: else
    fi;
left:
    // A fault comes before a request that has found the guest running. It comes after one that has found it out of
    // KVM_RUN, for that has been promised the call's end.
    atomic {
        old = state & REQUESTS;
#ifndef MUTATION_KNOWN_FAULT_BEFORE_CANCEL
#define FAULT_COUNTS (exit == FAULTS_IN_GUEST && !(is_known && (old & CANCEL)))
#else
#define FAULT_COUNTS (exit == FAULTS_IN_GUEST)
#endif
        if
        :: FAULT_COUNTS || (exit == RETURNS && !owes_turn && !(old & CANCEL)) ->
            state = (state | DECIDED) & ~RUNNING
        :: else -> state = state & ~RUNNING
        fi
    };
#if CAN_BE_INTERRUPTED
    if
    :: old && !is_known -> ADD_TO_DEPARTURES
    :: else
    fi;
#endif
    if
#if HOSTILE
    :: FAULT_COUNTS -> outcome = FAULTED; goto decide
#endif
    :: !FAULT_COUNTS && (old & CANCEL) -> goto decide
    // The guest has left because it did not know of its turn.
    :: (exit == RETURNS || exit == CALLS_HOST) && !(old & CANCEL) && owes_turn ->
        atomic { old = 0; owes_turn = false; word = GUEST; goto enter }
    :: exit == RETURNS && !(old & CANCEL) && !owes_turn -> outcome = RETURNED; goto decide
#if HOST_CALLS
    :: exit == CALLS_HOST && !(old & CANCEL) && !owes_turn
#endif
    :: exit == INTERRUPTED && !(old & CANCEL) -> old = 0; goto enter
    fi;

#if HOST_CALLS
host_function:
    run_host_function();
    d_step { old = 0; word = GUEST };
    goto enter;
#endif

decide:
    atomic {
        if
        :: (state & CANCEL) && !(state & DECIDED) -> outcome = reason
        :: else
        fi;
        state = state | DECIDED
    };
#if TIMERS
    timer_armed = false;
    !timer_pending;
#endif
end_call:
    atomic {
        end_it(outcome);
        // Restored, if guest code may have run.
        if
        :: outcome != RETURNED && (state & ENTERED) -> guest_at = POLLS_FOR_CALL; word = HOST; requested = 0
        :: else
        fi;
        waiting_callers = waiting_callers & ~call_of;
        stage = BEGUN;
        is_known = false;
        owes_turn = false;
        call_of = 0;
        outcome = 0;
        exit = 0;
        old = 0
    };
    goto idle;

polling_gives_up:
    // A recall that the offer has found is forgotten: what it was for is in the queue.
    if
    :: old -> old = false; baton = OWN
    :: else
    fi;
    is_polling = false;
    end_polling();
    atomic { old = 0; seen = 0 };
    goto idle;

end_rests:
    false
}
