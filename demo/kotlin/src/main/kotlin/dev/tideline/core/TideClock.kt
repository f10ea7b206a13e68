/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

private const val MINUTES_PER_HOUR = 60L
private const val MINUTES_PER_DAY = 24 * MINUTES_PER_HOUR

/** Measures how long something takes, in whole minutes. */
@JvmInline
value class Span(val minutes: Long) : Comparable<Span> {
    val hours: Double get() = minutes.toDouble() / MINUTES_PER_HOUR

    operator fun plus(other: Span): Span = Span(minutes + other.minutes)

    operator fun minus(other: Span): Span = Span(minutes - other.minutes)

    operator fun times(factor: Int): Span = Span(minutes * factor)

    override fun compareTo(other: Span): Int = minutes.compareTo(other.minutes)

    override fun toString(): String =
        "${minutes / MINUTES_PER_HOUR}h${twoDigits(minutes % MINUTES_PER_HOUR)}"

    companion object {
        val ZERO = Span(0)

        /** Makes a span of whole minutes. */
        fun ofMinutes(minutes: Int): Span = Span(minutes.toLong())

        /** Makes a span of whole hours. */
        fun ofHours(hours: Int): Span = Span(hours * MINUTES_PER_HOUR)

        /** Makes a span of whole days. */
        fun ofDays(days: Int): Span = Span(days * MINUTES_PER_DAY)
    }
}

/** Marks one minute of the harbour calendar, counted from midnight of its first day. */
@JvmInline
value class Moment(val minute: Long) : Comparable<Moment> {
    val day: Long get() = minute.floorDiv(MINUTES_PER_DAY)
    val minuteOfDay: Long get() = minute.mod(MINUTES_PER_DAY)

    operator fun plus(span: Span): Moment = Moment(minute + span.minutes)

    operator fun minus(span: Span): Moment = Moment(minute - span.minutes)

    operator fun minus(other: Moment): Span = Span(minute - other.minute)

    override fun compareTo(other: Moment): Int = minute.compareTo(other.minute)

    override fun toString(): String =
        "d$day ${twoDigits(minuteOfDay / MINUTES_PER_HOUR)}:${twoDigits(minuteOfDay % MINUTES_PER_HOUR)}"

    companion object {
        /** Makes the moment at the given hour and minute of a day. */
        fun of(day: Int, hour: Int, minute: Int = 0): Moment =
            Moment(day * MINUTES_PER_DAY + hour * MINUTES_PER_HOUR + minute)
    }
}

/** Spans the time from one moment up to, but not including, another. */
data class Window(val from: Moment, val until: Moment) {
    val length: Span get() = until - from

    operator fun contains(moment: Moment): Boolean = moment >= from && moment < until

    /** Tells whether the two windows share at least one minute. */
    fun overlaps(other: Window): Boolean = from < other.until && other.from < until

    /** Moves both ends by the same span. */
    fun shiftedBy(span: Span): Window = Window(from + span, until + span)

    override fun toString(): String = "$from..$until"
}

/** Tells the time, and is the only one in the harbour who may. */
interface TideClock {
    fun now(): Moment
}

/** Tells the time of the machine. */
class HarbourClock(private val millis: () -> Long = System::currentTimeMillis) : TideClock {
    override fun now(): Moment = Moment(millis() / 60_000)
}

/** Stands still until it is moved, for specs and simulations. */
class StillClock(private var moment: Moment) : TideClock {
    override fun now(): Moment = moment

    /** Moves the clock forward by the span. */
    fun advance(span: Span) {
        moment += span
    }

    /** Moves the clock to the moment. */
    fun moveTo(target: Moment) {
        moment = target
    }
}

private fun twoDigits(number: Long): String = number.toString().padStart(2, '0')
