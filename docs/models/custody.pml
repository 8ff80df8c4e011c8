/* Who may look at what belongs to a virtual CPU's thread while a synchronous host function keeps that thread: the
 * protocol of VirtualCPUThread.offeringCustody, withCustody and addInterlude. Sequentially consistent, as the Swift
 * atomics of these steps are.
 *
 * Checked: never two at once in what belongs to the thread; no inspection is forgotten; nobody waits for ever.
 *
 * Seeded mistakes, each of which must be found: MUTATION_NO_LOOK (the thread does not look after it has offered),
 * MUTATION_BLIND_TAKE (it takes back without asking), MUTATION_NO_RECHECK (whoever looked does not look again after
 * giving custody back).
 */
#define OWN 0
#define OFFERED 1
#define TAKEN 2
#ifndef INSPECTORS
#define INSPECTORS 2
#endif

byte custody = OWN;
byte queued = 0;   /* inspections that are in the queue */
byte done = 0;
byte inside = 0;   /* who is at work on what belongs to the thread */
bool over = false; /* the thread does nothing any more but serve what is left */

inline work() {
    inside++;
    assert(inside == 1);
    inside--
}

/* Takes inspections from the queue, each in one step under its lock, and carries them out. */
inline run_inspections() {
    do
    :: atomic { queued > 0 -> queued-- };
       work();
       done++
    :: atomic { queued == 0 -> break }
    od
}

inline take_back() {
#ifdef MUTATION_BLIND_TAKE
    custody = OWN
#else
    atomic { custody == OFFERED -> custody = OWN }   /* sleeps while it is taken */
#endif
}

inline offer() {
    do
    :: custody = OFFERED;
#ifndef MUTATION_NO_LOOK
       if
       :: queued == 0 -> break
       :: else -> take_back(); run_inspections()
       fi
#else
       break
#endif
    od
}

active proctype thread() {
    byte calls = 0;
    do
    :: calls < 2 ->
        calls++;
        work();          /* the guest, the run loop */
        offer();
        if
        :: true ->       /* the host function asks for something of the thread */
            take_back();
            work();
            offer()
        :: true
        fi;
        if
        :: calls == 2 ->
            /* A host function that goes on for ever: whatever comes now must be served all the same. */
            (done == INSPECTORS)
        :: true
        fi;
        take_back()
    :: else -> break
    od;
    over = true;
    /* Between two calls it looks at its queue. */
    do
    :: queued > 0 -> run_inspections()
    :: done == INSPECTORS -> break
    od
}

active [INSPECTORS] proctype inspector() {
    bool taken;
    queued++;
    do
    :: queued == 0 -> break
    :: else ->
        atomic {
            taken = (custody == OFFERED);
            if
            :: taken -> custody = TAKEN
            :: else
            fi
        };
        if
        :: taken ->
            run_inspections();
            custody = OFFERED
#ifdef MUTATION_NO_RECHECK
            ;
            break
#endif
        :: else -> break
        fi
    od
}
