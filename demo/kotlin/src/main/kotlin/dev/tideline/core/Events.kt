/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

/** Tells that something happened in the harbour, and when. */
interface TideEvent {
    val at: Moment
}

/** Ends the interest of a listener when it is called. */
fun interface Subscription {
    fun cancel()
}

/** Carries events from the desk that publishes them to everybody who listens. */
class Events(private val memory: Int = 1_000) {
    private val listeners = mutableListOf<(TideEvent) -> Unit>()
    private val published = ArrayDeque<TideEvent>()

    /** Publishes the event to the listeners in the order in which they subscribed. */
    fun publish(event: TideEvent) {
        if (published.size == memory) published.removeFirst()
        published.addLast(event)
        listeners.toList().forEach { listener -> listener(event) }
    }

    /** Subscribes to every event. */
    fun subscribe(listener: (TideEvent) -> Unit): Subscription {
        listeners += listener
        return Subscription { listeners -= listener }
    }

    /** Subscribes to the events of one type. */
    inline fun <reified E : TideEvent> on(crossinline handler: (E) -> Unit): Subscription =
        subscribe { event -> if (event is E) handler(event) }

    /** Lists the remembered events, oldest first. */
    fun listPublished(): List<TideEvent> = published.toList()

    /** Lists the remembered events that happened within the window. */
    fun listWithin(window: Window): List<TideEvent> = published.filter { it.at in window }

    /** Counts the remembered events of one type. */
    inline fun <reified E : TideEvent> countOf(): Int = listPublished().count { it is E }
}
