/* Lets a program that runs in callgrind say what is counted. Without callgrind all of it does nothing. */
#include <valgrind/callgrind.h>

void counting_start(void) { CALLGRIND_START_INSTRUMENTATION; }

void counting_stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
