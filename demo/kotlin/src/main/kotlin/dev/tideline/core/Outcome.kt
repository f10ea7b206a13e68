/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

/** Names why the harbour refused a request. */
enum class Reason { NOT_FOUND, DUPLICATE, INVALID, CONFLICT, FULL, UNSAFE, TOO_EARLY, TOO_LATE, FORBIDDEN }

/** Carries the result of a request that the harbour may refuse. */
sealed interface Outcome<out T>

/** Holds the value of a request that was granted. */
data class Done<out T>(val value: T) : Outcome<T>

/** Holds the reason and the message of a request that was refused. */
data class Refused(val reason: Reason, val message: String) : Outcome<Nothing>

/** Grants a request with the given value. */
fun <T> done(value: T): Outcome<T> = Done(value)

/** Grants a request that has nothing to hand back. */
fun done(): Outcome<Unit> = Done(Unit)

/** Refuses a request and explains why. */
inline fun refuse(reason: Reason, message: () -> String): Refused = Refused(reason, message())

/** Grants when the condition holds and refuses otherwise. */
inline fun requireThat(condition: Boolean, reason: Reason, message: () -> String): Outcome<Unit> =
    if (condition) done() else refuse(reason, message)

/** Grants the value when it is present and refuses as not found otherwise. */
inline fun <T : Any> requireFound(value: T?, message: () -> String): Outcome<T> =
    if (value != null) done(value) else refuse(Reason.NOT_FOUND, message)

/** Goes on with the next request when this one was granted. */
inline fun <T, R> Outcome<T>.then(next: (T) -> Outcome<R>): Outcome<R> =
    when (this) {
        is Done -> next(value)
        is Refused -> this
    }

/** Turns the granted value into another one. */
inline fun <T, R> Outcome<T>.into(change: (T) -> R): Outcome<R> = then { done(change(it)) }

/** Looks at the granted value without changing the outcome. */
inline fun <T> Outcome<T>.onDone(action: (T) -> Unit): Outcome<T> {
    if (this is Done) action(value)
    return this
}

/** Looks at the refusal without changing the outcome. */
inline fun <T> Outcome<T>.onRefused(action: (Refused) -> Unit): Outcome<T> {
    if (this is Refused) action(this)
    return this
}

/** Unwraps the granted value or falls back when the request was refused. */
inline fun <T> Outcome<T>.orElse(fallback: (Refused) -> T): T =
    when (this) {
        is Done -> value
        is Refused -> fallback(this)
    }

/** Collects the granted values in order, or hands back the first refusal. */
fun <T> Iterable<Outcome<T>>.gather(): Outcome<List<T>> {
    val values = mutableListOf<T>()
    for (outcome in this) {
        when (outcome) {
            is Done -> values += outcome.value
            is Refused -> return outcome
        }
    }
    return done(values)
}
